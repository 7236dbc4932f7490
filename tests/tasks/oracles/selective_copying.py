"""Selective copying read from its text: what is neither noise nor mark, in its order, is asked at the marks."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    tokens = draw(st.integers(4, 12))
    return {
        "tokens": tokens,
        "length": draw(st.integers(2 * tokens, 80)),
        "vocab_size": draw(st.integers(7, 30)),
    }


def check(task, sample):
    ids = sample["ids"].tolist()
    marks = [place for place, token in enumerate(ids) if token == task.vocab_size - 1]
    symbols = [token for token in ids if 0 < token < task.vocab_size - 1]
    assert len(ids) == task.length
    assert marks == list(range(task.length - task.tokens, task.length))
    assert len(symbols) == task.tokens
    assert sample["targets"].tolist() == [-100] * (task.length - task.tokens) + symbols


def guesser(task, sample, random):
    return random.integers(1, task.vocab_size - 1, size=len(sample["ids"]))
