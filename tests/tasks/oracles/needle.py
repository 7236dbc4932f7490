"""Needle read from its text: the number behind the question's words where they stood before."""

from __future__ import annotations

import re

from hypothesis import strategies as st


@st.composite
def params(draw):
    digits = draw(st.integers(1, 9))
    return {
        "digits": digits,
        "length": 80 + 2 * digits + draw(st.integers(0, 1500)),
        "depth": draw(st.none() | st.floats(0, 1)),
    }


def check(task, sample):
    text = bytes(sample["ids"].tolist()).decode()
    answer = bytes(sample["targets"][-task.digits :].tolist()).decode()
    assert len(text) == task.length
    assert (sample["targets"][: -task.digits] == -100).all()
    found = list(re.finditer(r"\n# The magic number of ([A-Z][a-z]+): (\d*)", text))
    assert len(found) == 2
    needle, question = found
    assert needle[1] == question[1]
    assert needle[2] == answer == question[2] + answer[-1]
    assert question.end() == len(text)
    if task.depth is not None:
        rest = len(text) + 1 - len(needle[0]) - len(question[0]) - 2
        wanted = round(task.depth * rest)
        assert needle.start() <= wanted + 1
        if needle.start() < wanted - 1:  # before the line that it would have fallen into
            assert "\n" not in text[needle.end() + 1 : needle.end() + wanted - needle.start()]


def guesser(task, sample, random):
    """Any digit."""
    return random.integers(ord("0"), ord("9") + 1, size=len(sample["ids"]))
