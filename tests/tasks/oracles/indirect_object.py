"""Indirect object read from its text: the words with a capital that are names, and which of them is there once."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import strategies as st

NO_NAMES = {"Then", "One", "After", "When", "While", "As"}  # a sentence begins with them


@st.composite
def params(draw):
    names = draw(st.integers(4, 26))
    return {"names": names, "people": draw(st.integers(2, names))}


def check(task, sample):
    text = bytes(sample["ids"].tolist()).decode()
    names = Counter(word for word in re.findall(r"[A-Z][a-z]+", text) if word not in NO_NAMES)
    assert len(names) == task.people
    assert sorted(names.values()) == [1] + [2] * (task.people - 1)
    (once,) = [name for name, count in names.items() if count == 1]
    assert sample["targets"].tolist() == [-100] * (len(text) - 1) + [ord(once[0])]
    assert len({name[0] for name in names}) == len(names)
    assert all(ord(name[0]) - ord("A") < task.names for name in names)
    assert text.endswith(" to ")
    assert "|" not in text


def guesser(task, sample, random):
    """The initial of any name."""
    return random.integers(ord("A"), ord("A") + task.names, size=len(sample["ids"]))
