"""A signal at half the rate with twice the step gives the same answers, to the error of the discretisation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import hybridlm as hl
from hybridlm.registry import mixers

STEPPED = [name for name in mixers.names() if "time_scale" in mixers.get(name).Config.__dataclass_fields__]
HEADS = {"regress": {"type": "regress", "outputs": 2}, "classify": {"type": "classify", "classes": 4, "pool": "mean"}}


def make(pattern: str, head: str = "regress", **fields) -> hl.HybridLM:
    blocks = {name: {"mixer": {"type": name, "d_state": 16, **fields}} for name in STEPPED}
    blocks["m"] = {"mixer": {"type": "mamba2"}}
    ends = {"embed": {"type": "linear", "channels": 1}, "head": HEADS[head]}
    return hl.build(pattern=pattern, blocks=blocks, d_model=32, seed=0, dtype=torch.float64, **ends).eval()


def sampled(rate: float, seconds: float = 3.0) -> Tensor:
    """The end of each step of a smooth function of time, which begins at 0. (1, t, 1)."""
    t = torch.arange(1, round(rate * seconds) + 1, dtype=torch.float64) / rate
    wave = torch.sin(6 * t) + torch.exp(-t) * torch.sin(2.5 * t)
    return wave[None, :, None]


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).square().mean() / want.square().mean()).sqrt().item()


def halves(model: hl.HybridLM, rate: float, pooled: bool) -> float:
    """Relative RMS between the answers at `rate` and at half of it, the model's own rate being 100 a second."""
    model.set_time_scale(100 / rate)
    whole = model(sampled(rate)).logits
    model.set_time_scale(200 / rate)
    return error(model(sampled(rate / 2)).logits, whole if pooled else whole[:, 1::2])


def test_the_linear_systems_can():
    assert {"s4", "s4d", "s5"} <= set(STEPPED)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", STEPPED)
@torch.no_grad()
def test_half_the_rate_with_twice_the_step_is_the_same(name, head):
    """The error is that of a discretisation: it falls with the step, to a sixth or less at 8 times the rate."""
    model, pooled = make(f"[{name}]2", head), head == "classify"
    errors = [halves(model, rate, pooled) for rate in (200, 400, 800, 1600)]
    assert errors[-1] < 0.02
    assert all(finer < coarser for coarser, finer in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 6
    told = halves(model, 100, pooled)
    model.set_time_scale(1)
    whole, half = model(sampled(100)).logits, model(sampled(50)).logits
    assert error(half, whole if pooled else whole[:, 1::2]) > 5 * told  # without being told


def scales(model: hl.HybridLM) -> list[list[float]]:
    """Of every place in turn."""
    inner = [getattr(block.mixer, "mixers", [block.mixer]) for block in model.blocks if block.mixer is not None]
    return [[mixer.config.time_scale for mixer in place] for place in inner]


def test_every_place_takes_it_and_one_rate_undoes_another():
    model = make("[s4]@x [s4]@x{time_scale: 3} [s4]{time_scale: 0.5} (<[s4]|[s4]{time_scale: 4}> -)2", time_scale=1.5)
    assert scales(model) == [[1.5], [3], [0.5], [1.5, 4], [1.5, 4]]
    model.set_time_scale(2)
    assert scales(model) == [[2], [2], [2], [2, 2], [2, 2]]
    assert model.spec.pattern == "[s4]@x[s4]@x[s4](<[s4]|[s4]>-)2"
    assert model.spec.blocks["s4"]["mixer"]["time_scale"] == 2
    x = sampled(40)
    twin = hl.build(model.spec, seed=0, dtype=torch.float64).eval()
    assert torch.equal(twin(x).logits, model(x).logits)
    before = model.spec.fingerprint
    model.set_time_scale(1)
    model.set_time_scale(2.0)
    assert model.spec.fingerprint == before


def test_places_with_corrections_of_their_own_take_it():
    blocks = {"S": {"mixer": {"type": "s4d", "d_state": 8}, "low_rank": 4}}
    ends = {"embed": {"type": "linear", "channels": 1}, "head": HEADS["regress"]}
    model = hl.build(pattern="S@x S@x{time_scale: 3} S@x", blocks=blocks, d_model=32, seed=0, **ends).double().eval()
    x = sampled(40)
    before = model(x).logits
    model.set_time_scale(2)
    assert scales(model) == [[2], [2], [2]]
    twin = hl.build(model.spec, seed=0).double().eval()
    assert torch.equal(twin(x).logits, model(x).logits)
    assert not torch.equal(before, model(x).logits)


def test_it_is_saved_with_the_model(tmp_path):
    model = make("[s4]@x [s4]@x")
    model.set_time_scale(2)
    hl.save(model, tmp_path)
    loaded = hl.load(tmp_path)
    assert scales(loaded) == [[2], [2]]
    assert torch.equal(loaded(sampled(40)).logits, model(sampled(40)).logits)


def test_a_state_of_another_rate_is_refused():
    model = make("[s4]")
    state = model(sampled(20), model.init_state(1, 200)).state
    model.set_time_scale(2)
    with pytest.raises(hl.StateError, match="another model"):
        model(sampled(20), state)
    model.set_time_scale(1)
    model(sampled(20), state)


def test_layers_that_count_tokens_are_named_and_nothing_changes():
    blocks = {"A": {"mixer": "attention"}, "S": {"mixer": "s4"}, "M": {"mixer": "mamba2"}}
    model = hl.build(pattern="S A <S|M> M -", blocks=blocks, d_model=32, vocab_size=50)
    before = model.spec
    with pytest.raises(hl.UnsupportedError, match=r"attention in layer 1; mamba2 in layers 2, 3: .*s4.* can"):
        model.set_time_scale(2)
    assert model.spec is before
    assert model.blocks[0].mixer.config.time_scale == 1
    hl.build(pattern="-", d_model=32, vocab_size=50).set_time_scale(2)  # knows no neighbours


@pytest.mark.parametrize("factor", [0, -1, "2", float("nan"), float("inf"), True, None])
def test_a_factor_is_a_positive_number(factor):
    with pytest.raises(hl.SpecError, match="time_scale: "):
        make("[s4]").set_time_scale(factor)
