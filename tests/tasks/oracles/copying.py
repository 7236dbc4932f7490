"""Copying read from its text: what stands between 0 and 1 is what is asked from the 1 on, and read behind it."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    tokens = draw(st.integers(6, 20))
    shortest = draw(st.none() | st.integers(4, tokens))
    return {"vocab_size": draw(st.integers(6, 40)), "tokens": tokens, "shortest": shortest}


def check(task, sample):
    ids = sample["ids"].tolist()
    copy = ids.index(1)
    text = ids[1:copy]
    assert ids[0] == 0
    assert all(symbol > 1 for symbol in text)
    assert task.tokens >= len(text) >= (task.shortest or task.tokens)
    assert ids[copy + 1 :] == text[:-1]
    assert sample["targets"].tolist() == [-100] * copy + text


def guesser(task, sample, random):
    return random.integers(2, task.vocab_size, size=len(sample["ids"]))
