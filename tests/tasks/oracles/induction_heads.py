"""Induction heads read from its text: the token behind the first special one is asked at the last."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {"vocab_size": draw(st.integers(4, 30)), "length": draw(st.integers(12, 100))}


def check(task, sample):
    ids, special = sample["ids"].tolist(), task.vocab_size - 1
    assert len(ids) == task.length
    assert ids.count(special) == 2
    assert ids[-1] == special
    assert sample["targets"].tolist() == [-100] * (task.length - 1) + [ids[ids.index(special) + 1]]


def guesser(task, sample, random):
    return random.integers(task.vocab_size - 1, size=len(sample["ids"]))
