"""Memorization read from its text: whatever was asked for a key once, in any sample, is asked always."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {
        "vocab_size": draw(st.integers(7, 80)),
        "seq_len": 2 * draw(st.integers(1, 20)),
        "table_seed": draw(st.integers(0, 1 << 40)),
    }


@lru_cache(maxsize=1024)
def seen(vocab_size, table_seed):
    """The table, as far as samples have shown it. It has nothing to do with their length or their seed."""
    return {}


def check(task, sample):
    half = (task.vocab_size - 1) // 2
    ids, targets = sample["ids"].tolist(), sample["targets"].tolist()
    assert len(ids) == task.seq_len
    assert ids[1::2] == [task.vocab_size - 1] * (task.seq_len // 2)
    assert targets[::2] == [-100] * (task.seq_len // 2)
    table = seen(task.vocab_size, task.table_seed)
    for key, value in zip(ids[::2], targets[1::2], strict=True):
        assert 0 <= key < half <= value < task.vocab_size - 1
        assert table.setdefault(key, value) == value
    assert len(set(table.values())) == len(table)


def guesser(task, sample, random):
    """Any of the values that were ever asked: those of the table, after a look at many samples."""
    many = [task.draw(random)["targets"] for _ in range(40 * task.vocab_size // task.seq_len + 40)]
    values = sorted({int(value) for targets in many for value in targets[1::2]})
    return random.choice(values, size=len(sample["ids"]))
