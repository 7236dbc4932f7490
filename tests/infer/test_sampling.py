"""Filters of logits against transformers' processors, draws that follow their distribution, and bad values."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import SpecError
from hybridlm.infer.sampling import Draws, Sampler, draw, keep_min_p, keep_top_k, keep_top_p, penalise, scale


@pytest.fixture
def logits(rng):
    return 3 * torch.randn(5, 40, generator=rng, dtype=torch.float64)


def same_distribution(ours, theirs):
    """Equal after softmax: a shift of all logits means nothing."""
    assert torch.equal(ours.isneginf(), theirs.isneginf())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------------------------------------- oracles
def processors():
    return pytest.importorskip("transformers.generation.logits_process")


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_against_transformers_temperature(logits, temperature):
    theirs = processors().TemperatureLogitsWarper(temperature)(None, logits)
    same_distribution(scale(logits, temperature), theirs)


@pytest.mark.parametrize("k", [1, 2, 39, 40, 1000])
def test_against_transformers_top_k(logits, k):
    assert torch.equal(keep_top_k(logits, k), processors().TopKLogitsWarper(k)(None, logits))


def test_against_transformers_top_k_with_ties():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    ours = keep_top_k(logits, 2)
    assert torch.equal(ours, processors().TopKLogitsWarper(2)(None, logits))
    assert ours.isneginf().sum() == 2


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 0.5, 0.9, 0.999])
def test_against_transformers_top_p(logits, p):
    assert torch.equal(keep_top_p(logits, p), processors().TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_against_transformers_min_p(logits, p):
    assert torch.equal(keep_min_p(logits, p), processors().MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_against_transformers_repetition_penalty(logits, rng, penalty):
    ids = torch.randint(0, 40, (5, 7), generator=rng)
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter(1, ids, True)
    theirs = processors().RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, penalty), theirs, rtol=1e-15, atol=0)


def test_against_transformers_whole_pipeline(logits, rng):
    theirs = processors()
    ids = torch.randint(0, 40, (5, 7), generator=rng)
    chain = [
        theirs.RepetitionPenaltyLogitsProcessor(1.2),
        theirs.TemperatureLogitsWarper(0.8),
        theirs.TopKLogitsWarper(25),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ]
    expected = logits.clone()
    for step in chain:
        expected = step(ids, expected)
    sampler = Sampler(temperature=0.8, top_k=25, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter(1, ids, True)
    same_distribution(sampler.filter(penalise(logits, seen, 1.2)), expected)
    assert expected.isneginf().any()


# ---------------------------------------------------------------------------------------------------------------- laws
@given(seed=st.integers(0, 1000), p=st.floats(0, 1), k=st.integers(1, 12), t=st.floats(1e-3, 100))
def test_every_filter_keeps_the_best_token(seed, p, k, t):
    logits = 5 * torch.randn(3, 9, generator=torch.Generator().manual_seed(seed))
    best = logits.argmax(-1, keepdim=True)
    kept = Sampler(temperature=t, top_k=k, top_p=p, min_p=p).filter(logits)
    assert kept.gather(1, best).isfinite().all()
    assert kept.isfinite().sum(1).max() <= k


def test_nucleus_is_the_smallest_set_that_holds_p():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    kept = [int(keep_top_p(logits, p).isfinite().sum()) for p in (0.0, 0.4, 0.6, 0.8, 1.0)]
    assert kept == [1, 1, 2, 3, 4]
    even = torch.zeros(1, 4)  # probabilities of exactly 1/4: what reaches p is enough
    assert [int(keep_top_p(even, p).isfinite().sum()) for p in (0.25, 0.5, 0.75, 0.8)] == [1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [1e-300, 1e-3])
def test_low_temperature_tends_to_greedy(logits, temperature):
    cold = Sampler(temperature=temperature)
    seen = torch.zeros(5, 40, dtype=torch.bool)
    assert torch.equal(cold(logits, seen, Draws(0, 5)), logits.argmax(-1))


def test_greedy_obeys_the_repetition_penalty():
    logits = torch.tensor([[2.0, 1.5, -1.0], [-1.0, -1.1, -9.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    assert Sampler()(logits, seen, Draws(0, 2)).tolist() == [0, 0]
    assert Sampler(repetition_penalty=2.0)(logits, seen, Draws(0, 2)).tolist() == [1, 1]


def test_draws_follow_the_distribution():
    """Chi square of 20,000 draws of each row of 4 tokens: 3 degrees of freedom, 16.3 is exceeded once in a thousand."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.2, 0.1]]).log()
    uniform = torch.rand(20_000, 2, dtype=torch.float64)
    tokens = torch.stack([draw(logits, u) for u in uniform])
    for row in range(2):
        counts = tokens[:, row].bincount(minlength=4).double()
        expected = 20_000 * logits[row].double().exp()
        assert counts[expected == 0].sum() == 0
        assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 16.3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_impossible_tokens_are_never_drawn(uniform):
    """At both ends of [0, 1) the cumulative sum is flat over the tokens that were removed."""
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 0.1, -math.inf]] * 200) * torch.rand(200, 1)
    tokens = draw(logits.nan_to_num(nan=-math.inf), torch.full((200,), uniform, dtype=torch.float64))
    assert set(tokens.tolist()) == {1 if uniform == 0 else 3}


# --------------------------------------------------------------------------------------------------------------- draws
def test_a_row_draws_the_same_in_any_batch():
    together = Draws(7, 3)
    batch = torch.stack([together.step() for _ in range(20)])
    for row in range(3):
        alone = Draws(7 + row, 1)
        assert torch.equal(batch[:, row], torch.cat([alone.step() for _ in range(20)]))
    listed = Draws([9, 7], 2)
    assert torch.equal(batch[:, [2, 0]], torch.stack([listed.step() for _ in range(20)]))


def test_neighbouring_seeds_are_independent():
    """First and second numbers of 2,000 neighbouring seeds: means 1/2 and no correlation between neighbours."""
    draws = Draws(0, 2000)
    for _ in range(2):
        u = draws.step() - 0.5
        assert abs(u.mean()) < 4 * 0.2887 / 2000**0.5
        assert abs((u[1:] * u[:-1]).mean() * 12) < 4 / 2000**0.5


# ---------------------------------------------------------------------------------------------------------- bad values
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "1"),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(SpecError, match=f"^{field}: "):
        Sampler(**{"temperature": 1.0, field: value})


@pytest.mark.parametrize("field", ["top_k", "top_p", "min_p"])
def test_a_filter_without_a_temperature_is_refused(field):
    with pytest.raises(SpecError, match=rf"^{field}: 1 does nothing at temperature 0.*set temperature"):
        Sampler(**{field: 1})


@pytest.mark.parametrize("seed", [True, 1.5, "1", -1, 1 << 63, [1], [1, 2, 3], [1, -2], None])
def test_bad_seeds_are_named(seed):
    with pytest.raises(SpecError, match=r"^seed: "):
        Draws(seed, 2)


def test_a_sampler_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Sampler().temperature = 1.0
