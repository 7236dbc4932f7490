"""Compression read from its text: every token is asked again, at its own place."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {"vocab_size": draw(st.integers(4, 40)), "seq_len": draw(st.integers(10, 60))}


def check(task, sample):
    ids = sample["ids"].tolist()
    assert len(ids) == task.seq_len
    assert ids.index(task.vocab_size - 1) == len(ids) - 1
    assert sample["targets"].tolist() == ids


def guesser(task, sample, random):
    """Any token, and at the end the mark."""
    tokens = random.integers(task.vocab_size - 1, size=len(sample["ids"]))
    tokens[-1] = task.vocab_size - 1
    return tokens
