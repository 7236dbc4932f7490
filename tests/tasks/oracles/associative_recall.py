"""Associative recall read from its text: look up the key behind the mark among the pairs before it."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {"vocab_size": draw(st.integers(8, 60)), "context": 2 * draw(st.integers(5, 40))}


def check(task, sample):
    *pairs, mark, key = sample["ids"].tolist()
    assert len(pairs) == task.context
    assert mark == task.vocab_size - 1
    table = {}
    for i in range(0, len(pairs), 2):
        assert table.setdefault(pairs[i], pairs[i + 1]) == pairs[i + 1]  # one value a key
    half = (task.vocab_size - 2) // 2
    assert all(0 <= k < half <= v < task.vocab_size - 2 for k, v in table.items())
    assert sample["targets"].tolist() == [-100] * (task.context + 1) + [table[key]]


def guesser(task, sample, random):
    """Any symbol that may be a value."""
    return random.integers((task.vocab_size - 2) // 2, task.vocab_size - 2, size=len(sample["ids"]))
