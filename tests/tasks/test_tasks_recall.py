"""Recall in its published forms: what is drawn how often, what is refused, and the corners that an oracle passes by."""

from __future__ import annotations

import numpy as np
import pytest

from hybridlm.errors import SpecError
from hybridlm.tasks.task import HELD_OUT, TRAINING, Samples, make
from tests.tasks.oracles import fuzzy_recall


def drawn(task, count=300, seed=0):
    random = np.random.default_rng(seed)
    return [task.draw(random) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "vocab_size", "length"),
    [
        ("associative_recall", 20, 42),
        ("in_context_recall", 16, 127),
        ("noisy_recall", 32, 127),
        ("fuzzy_recall", 16, 128),
        ("mad_selective_copying", 16, 256),
        ("memorization", 256, 32),
        ("compression", 16, 32),
    ],
)
def test_defaults_are_the_published_ones(name, vocab_size, length):
    task = make(name)
    assert (task.vocab_size, task.length) == (vocab_size, length)
    assert all(len(sample["ids"]) == length for sample in drawn(task, 5))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("associative_recall", {"context": 41}, "context: 41 is odd; .* use 40 or 42"),
        ("in_context_recall", {"seq_len": 9}, "seq_len: 9 is odd; .* use 8 or 10"),
        ("in_context_recall", {"vocab_size": 4, "multi_query": False}, "vocab_size: 4 leaves 3 ids .* use 5"),
        ("noisy_recall", {"vocab_size": 16}, "vocab_size: 16 leaves 0 ids .* beside 16 of noise, .* use 20"),
        ("noisy_recall", {"frac_noise": 1.5}, "frac_noise: 1.5 is out of range"),
        ("fuzzy_recall", {"seq_len": 17}, "seq_len: 17 has no room for three pairs of up to 6 tokens; use at least 18"),
        ("fuzzy_recall", {"vocab_size": 7, "v_motif_size": 4}, "v_motif_size: 4 different tokens, but .* has 3"),
        ("fuzzy_recall", {"k_motif_size": 8}, "k_motif_size: 8 different tokens, but vocab_size 16 has 7"),
        ("mad_selective_copying", {"seq_len": 33}, "seq_len: 33 has no room .* at least 34, or at most 15 num_tokens"),
        ("memorization", {"seq_len": 7}, "seq_len: 7 is odd"),
    ],
)
def test_what_does_not_go_together_is_named_with_the_fix(name, params, message):
    with pytest.raises(SpecError, match=rf"{name}\.{message}"):
        make(name, params)


def test_the_fix_that_is_named_works():
    make("in_context_recall", {"vocab_size": 5, "multi_query": False})
    make("noisy_recall", {"vocab_size": 20})
    make("mad_selective_copying", {"seq_len": 34})
    make("mad_selective_copying", {"seq_len": 33, "num_tokens_to_copy": 15})
    make("fuzzy_recall", {"seq_len": 18})


def test_noise_is_as_frequent_as_said():
    task = make("noisy_recall", {"frac_noise": 0.6})
    noisy = [(sample["ids"][:-1:2] >= 16).mean() for sample in drawn(task)]
    kept = 1 / 63  # slots that always hold a pair
    assert np.mean(noisy) == pytest.approx(0.6 * (1 - kept), abs=0.01)


def test_noise_of_every_kind_stands_in_every_place():
    ids = np.concatenate([sample["ids"][:-1] for sample in drawn(make("noisy_recall"))])
    for side in (ids[::2], ids[1::2]):
        assert set(side[side >= 16].tolist()) == set(range(16, 32))


@pytest.mark.parametrize("name", ["associative_recall", "in_context_recall"])
def test_keys_and_values_are_drawn_anew_for_each_sample(name):
    """Every key comes with every value, as often."""
    counts = np.zeros((9, 20))
    for sample in drawn(make(name), 2000):
        key, value = sample["ids"][-1], sample["targets"][-1]
        counts[key, value] += 1
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    expected = 2000 / counts.size
    assert counts.shape == ((9, 9) if name == "associative_recall" else (8, 8))
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_fuzzy_pairs_are_of_all_sizes_and_the_asked_one_is_always_shown():
    """Also where there is hardly room: a sample without it would have no answer, which the oracle would find."""
    sizes = [(sample["targets"] != -100).sum() for sample in drawn(make("fuzzy_recall", {"multi_query": False}))]
    assert np.bincount(sizes)[1:].min() > 60
    assert max(sizes) == 3
    tight = make("fuzzy_recall", {"seq_len": 18, "vary_keys": True})
    for sample in drawn(tight):
        fuzzy_recall.check(tight, sample)


def test_the_asked_pair_of_fuzzy_recall_stands_anywhere():
    task = make("fuzzy_recall", {"multi_query": False})
    places = []
    for sample in drawn(task):
        ids = sample["ids"].tolist()
        key = ids[ids.index(15) + 1 :][:3]
        places.append(next(i for i in range(128) if ids[i : i + 3] == key))
    assert np.percentile(places, 10) < 30
    assert np.percentile(places, 90) > 90


def test_every_blank_of_mads_copying_stands_before_a_token_drawn_at_random():
    task = make("mad_selective_copying", {"num_tokens_to_copy": 4, "seq_len": 49})
    gaps = []
    for sample in drawn(task, 500):
        ids = sample["ids"].tolist()
        places = [i for i, token in enumerate(ids[: ids.index(15)]) if token < 14]
        gaps.append(np.diff([-1, *places]) - 1)
    assert np.array(gaps).sum(axis=1).tolist() == [40] * 500
    assert np.mean(gaps, axis=0) == pytest.approx([10] * 4, abs=0.6)
    assert np.std(gaps, axis=0) == pytest.approx([(40 * 0.25 * 0.75) ** 0.5] * 4, abs=0.3)  # binomial


def test_what_is_memorised_is_one_table_for_all_seeds_and_families():
    task = make("memorization")
    assert len(set(task.table.tolist())) == len(task.table) == 127
    assert set(task.table.tolist()) <= set(range(127, 255))
    assert task.guess() == 1 / 127  # the values in the table, not all that there are
    asked = {}
    for seed in (0, 1):
        for family in (TRAINING, HELD_OUT):
            for number in range(60):
                sample = Samples(task, seed).sample(family, number)
                for key, value in zip(sample["ids"][::2], sample["targets"][1::2], strict=True):
                    assert asked.setdefault(int(key), int(value)) == task.table[key] == value
    assert sorted(asked) == list(range(127))
    assert not np.array_equal(task.table, make("memorization", {"table_seed": 1}).table)
