"""Knock-outs: a branch is zeroed, or replaced by its mean, in its layer alone; and afterwards all is as before."""

import pytest
import torch

from hybridlm.ablate.knockout import branches, knockouts
from hybridlm.ablate.measure import HeldOut, measure
from hybridlm.compose.build import build
from hybridlm.compose.spec import ModelSpec
from hybridlm.tasks.data import TaskData

BLOCKS = {"M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 16}}, "A": {"mixer": "attention"}}


def model_of(pattern, **more):
    spec = ModelSpec.from_dict({"d_model": 32, "vocab_size": 32, "pattern": pattern, "blocks": BLOCKS, **more})
    return build(spec, seed=0)


@pytest.fixture(scope="module")
def held_out():
    params = {"vocab_size": 32, "length": 16, "pairs": 2}
    return HeldOut(TaskData("mqar", params, held_out=12, batch_size=5), 12, torch.device("cpu"))


def test_names_say_layer_mixer_and_how(held_out):
    assert list(knockouts(model_of("MA"), held_out)) == [
        "0.mamba2.zero",
        "0.mamba2.mean",
        "1.attention.zero",
        "1.attention.mean",
    ]
    assert list(branches(model_of("<M|A>-<A|A>"))) == ["0.mamba2", "0.attention", "2.attention", "2.attention#2"]


@pytest.mark.parametrize("pattern", ["MA", "<M|A>A"])
def test_zeroing_a_branch_is_zeroing_what_it_writes(held_out, pattern):
    model = model_of(pattern)
    found = knockouts(model, held_out)["0.mamba2.zero"]
    mixer = next(iter(model.blocks[0].mixers.values()))
    with torch.no_grad():
        mixer.out_proj.weight.zero_()
    assert measure(model, held_out) == pytest.approx(found, rel=1e-6)


def test_a_branch_that_always_says_the_same_is_its_mean(held_out):
    model = model_of("MA")
    mixer = model.blocks[1].mixer
    mixer.register_forward_hook(lambda *call: (call[2][0] * 0 + 0.3, call[2][1]))
    found = knockouts(model, held_out)
    assert found["1.attention.mean"] == pytest.approx(measure(model, held_out), rel=1e-5)
    assert found["1.attention.zero"]["loss"] != pytest.approx(measure(model, held_out)["loss"], rel=1e-5)


def test_the_mean_is_over_samples_and_positions(held_out):
    model, seen = model_of("A"), []
    with torch.no_grad():
        hook = model.blocks[0].mixer.register_forward_hook(lambda *call: seen.append(call[2][0]))
        measure(model, held_out)
    hook.remove()
    mean = torch.cat([y.flatten(0, 1) for y in seen]).mean(dim=0)
    found = knockouts(model, held_out)["0.attention.mean"]
    model.blocks[0].mixer.register_forward_hook(lambda *call: (mean.expand_as(call[2][0]), call[2][1]))
    assert measure(model, held_out)["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_shared_weights_are_knocked_out_at_one_depth(held_out):
    model = model_of("A@same M A@same")
    found = knockouts(model, held_out)
    assert found["0.attention.zero"] != found["2.attention.zero"]


def test_the_model_is_as_before(held_out):
    model = model_of("MA")
    before = measure(model, held_out)
    knockouts(model, held_out)
    assert measure(model, held_out) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
