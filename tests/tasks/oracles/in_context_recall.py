"""In-context recall read from its text: at each key, the value that stood behind it when it was there before."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    return {
        "vocab_size": draw(st.integers(6, 40)),
        "seq_len": 2 * draw(st.integers(8, 40)),
        "multi_query": draw(st.booleans()),
    }


def check(task, sample):
    symbols = task.vocab_size if task.multi_query else task.vocab_size - 1
    ids = sample["ids"].tolist()
    assert len(ids) == (task.seq_len - 1 if task.multi_query else task.seq_len)
    assert set(ids[: task.seq_len - 2]) <= set(range(symbols))
    check_recall(sample, symbols, task.vocab_size, task.multi_query)


def check_recall(sample, symbols, vocab_size, multi_query):
    """symbols: ids of keys and values; what else stands between pairs is noise."""
    ids, half = sample["ids"].tolist(), symbols // 2
    if not multi_query:
        assert ids[-2] == vocab_size - 1
        ids = ids[:-2] + ids[-1:]
    table, answers = {}, []
    for i, token in enumerate(ids):
        key, value = token, ids[i + 1] if i + 1 < len(ids) else None
        answers.append(-100)
        if key >= half:
            assert i % 2 == 1 or key >= symbols  # values stand behind keys
            continue
        assert i % 2 == 0
        if key in table:
            answers[-1] = table[key] if multi_query or value is None else -100
        if value is not None:
            assert half <= value < symbols
            assert table.setdefault(key, value) == value
    assert answers[-1] == table[ids[-1]]  # the last one was there before
    if not multi_query:
        answers = [*answers[:-1], -100, answers[-1]]
    assert sample["targets"].tolist() == answers


def guesser(task, sample, random):
    """Any symbol that may be a value."""
    symbols = task.vocab_size if task.multi_query else task.vocab_size - 1
    return random.integers(symbols // 2, symbols, size=len(sample["ids"]))
