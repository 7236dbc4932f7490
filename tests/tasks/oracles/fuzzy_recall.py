"""Fuzzy recall read from its text: runs of key tokens and runs of value tokens take turns, and keys that return ask."""

from __future__ import annotations

from itertools import groupby

from hypothesis import strategies as st


@st.composite
def params(draw):
    keys, values = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return {
        "k_motif_size": keys,
        "v_motif_size": values,
        "vocab_size": 2 + 2 * max(keys, values, 3) + draw(st.integers(0, 30)),
        "seq_len": 3 * (keys + values) + draw(st.integers(8, 80)),
        "multi_query": draw(st.booleans()),
        "vary_keys": draw(st.booleans()),
    }


def check(task, sample):
    marks = 1 if task.multi_query else 2
    pad, half = task.vocab_size - marks, (task.vocab_size - marks) // 2
    ids, targets = sample["ids"].tolist(), sample["targets"].tolist()
    assert len(ids) == task.seq_len
    body = [token for token in ids if token != pad]
    assert ids == [pad] * (len(ids) - len(body)) + body
    whole = [*body, targets[-1]]  # no model reads the last token of the last answer
    if not task.multi_query:
        where = whole.index(task.vocab_size - 1)
        assert whole.count(task.vocab_size - 1) == 1
        whole.pop(where)
    runs = [(is_value, tuple(run)) for is_value, run in groupby(whole, key=lambda token: token >= half)]
    assert [is_value for is_value, _ in runs] == [False, True] * (len(runs) // 2)
    expected, table, place = [-100] * len(whole), {}, 0
    for (_, key), (_, value) in zip(runs[::2], runs[1::2], strict=True):
        assert len(set(key)) == len(key) <= task.k_motif_size
        assert task.vary_keys or len(key) == task.k_motif_size
        assert len(set(value)) == len(value) <= task.v_motif_size
        place += len(key) + len(value)
        if key in table and (task.multi_query or place == len(whole)):
            expected[place - len(value) : place] = value
        assert place < len(whole) or key in table  # the end asks what was there
        assert table.setdefault(key, value) == value
    if not task.multi_query:
        assert where == len(whole) - len(runs[-1][1]) - len(runs[-2][1])
        expected.insert(where, -100)
    assert targets == ([-100] * (len(ids) - len(body)) + expected)[1:]


def guesser(task, sample, random):
    """Any symbol that may be in a value."""
    symbols = task.vocab_size - (1 if task.multi_query else 2)
    return random.integers(symbols // 2, symbols, size=len(sample["ids"]))
