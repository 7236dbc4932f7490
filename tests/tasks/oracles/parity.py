"""Parity read from its bits: count the ones up to each."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {"length": draw(st.integers(10, 80))}


def check(task, sample):
    bits = sample["ids"].tolist()
    assert len(bits) == task.length
    assert sample["targets"].tolist() == [bits[: i + 1].count(1) % 2 for i in range(len(bits))]


def guesser(task, sample, random):
    return random.integers(2, size=len(sample["ids"]))
