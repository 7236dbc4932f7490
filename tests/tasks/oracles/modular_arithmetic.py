"""Modular arithmetic by Python's own arithmetic, of the expression written out."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import strategies as st


@st.composite
def params(draw):
    brackets, half = draw(st.booleans()), draw(st.integers(5, 20))
    shortest = draw(st.none() | st.integers(2, half))
    return {
        "length": 2 * half,
        "shortest": None if shortest is None else 2 * shortest,
        "modulus": draw(st.integers(2, 12)),
        "operators": draw(st.sampled_from(["+-*", "+-"])),
        "brackets": brackets,
    }


def check(task, sample):
    *expression, equals = sample["ids"].tolist()
    assert equals == task.modulus + 5
    least = task.length if task.shortest is None else task.shortest
    assert least <= len(expression) + 1 <= task.length
    text = written(task, expression)
    assert set(re.findall(r"[+*-]", text)) <= set(task.operators)
    pattern = r"(\d+ [+*-] )*\d+" if not task.brackets else r"[-\d+*() ]+"
    assert re.fullmatch(pattern, text)
    if task.brackets:
        assert fully_bracketed(text)
    answer = eval(text, {"__builtins__": {}}) % task.modulus  # digits, operators and brackets, as just seen
    assert sample["targets"].tolist() == [-100] * len(expression) + [answer]


def written(task, ids):
    """The expression as text, with spaces between its tokens."""
    return " ".join(str(i) if i < task.modulus else "+-*()"[i - task.modulus] for i in ids)


def fully_bracketed(text):
    """Whether the grammar gives it: (left operator right), number, -number, (number) or (-number), and no more."""
    text = text.replace(" ", "")
    small = r"-\d+|\d+|E"
    while True:
        shorter = re.sub(rf"\((?:(?:{small})[+*-](?:{small})|-?\d+)\)", "E", text, count=1)
        if shorter == text:
            return re.fullmatch(small, text) is not None
        text = shorter


def guesser(task, sample, random):
    """0, which products make the most frequent; all values are as likely without them."""
    return np.zeros(len(sample["ids"]), dtype=np.int64)
