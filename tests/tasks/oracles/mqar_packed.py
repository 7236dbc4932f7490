"""Packed MQAR read from its text: as MQAR; in the first stage every slot is a key."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.tasks.oracles.mqar import any_value, check_recall


@st.composite
def params(draw):
    stages = draw(st.integers(1, 3))
    length = draw(st.integers(2, 6)) * (4 << (stages - 1))
    return {"stages": stages, "length": length, "vocab_size": draw(st.integers(length // 2 + 2, 80))}


def check(task, sample):
    pairs = asked(sample)
    assert len(sample["ids"]) == task.length
    assert pairs in [task.length // 4 // 2**stage for stage in range(task.stages)]
    check_recall(sample, pairs, task.vocab_size, zero_fillers=False)
    if task.stages == 1:
        assert (sample["targets"][task.length // 2 :: 2] != -100).all()


def guesser(task, sample, random):
    return any_value(sample, asked(sample), random)


def asked(sample):
    return int((sample["targets"] != -100).sum())
