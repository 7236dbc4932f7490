"""Noisy recall read from its text: as in-context recall, where noise stands in twos between the pairs."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.tasks.oracles.in_context_recall import check_recall


@st.composite
def params(draw):
    noise = draw(st.integers(1, 20))
    return {
        "noise_vocab_size": noise,
        "vocab_size": noise + draw(st.integers(6, 40)),
        "frac_noise": draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])),
        "seq_len": 2 * draw(st.integers(10, 40)),
        "multi_query": draw(st.booleans()),
    }


def symbols_of(task):
    return task.vocab_size - task.noise_vocab_size - (0 if task.multi_query else 1)


def check(task, sample):
    symbols = symbols_of(task)
    ids = sample["ids"].tolist()
    assert len(ids) == (task.seq_len - 1 if task.multi_query else task.seq_len)
    slots = [ids[i : i + 2] for i in range(0, task.seq_len - 2, 2)]
    noisy = [all(symbols <= token < symbols + task.noise_vocab_size for token in slot) for slot in slots]
    assert not all(noisy)
    assert any(noisy) or task.frac_noise < 0.5 or len(slots) == 1
    if task.frac_noise in (0, 1):
        assert sum(noisy) == (len(slots) - 1) * task.frac_noise
    for slot, noise in zip(slots, noisy, strict=True):
        assert noise or max(slot) < symbols
    check_recall(sample, symbols, task.vocab_size, task.multi_query)


def guesser(task, sample, random):
    """Any symbol that may be a value."""
    symbols = symbols_of(task)
    return random.integers(symbols // 2, symbols, size=len(sample["ids"]))
