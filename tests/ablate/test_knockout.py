"""Knock-outs: a branch is zeroed, or replaced by its mean, in its layer alone; and afterwards all is as before.

What they say is held against whole readings of a model whose mixers are changed by hooks of the test's own.
"""

import copy

import pytest
import torch

from hybridlm.ablate import knockout
from hybridlm.ablate import measure as measuring
from hybridlm.ablate.knockout import branches, knockouts
from hybridlm.ablate.measure import HeldOut, measure
from hybridlm.compose.build import build
from hybridlm.compose.compiled import compile
from hybridlm.compose.spec import ModelSpec
from hybridlm.tasks.data import TaskData

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 16}},
    "A": {"mixer": "attention"},
    "Z": {"mixer": "attention", "input": "concat_embeddings"},
}


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
    named = [list(mixers) for mixers in branches(model_of("<M|A>-<A|A>"))]
    assert named == [["0.mamba2", "0.attention"], [], ["2.attention", "2.attention#2"]]


def by_whole_readings(model, held_out):
    """{name: metrics}: every branch of a model without shared weights, the whole model read anew for each."""
    found = {}
    for name, mixer in [pair for mixers in branches(model) for pair in mixers.items()]:
        seen = []
        watch = mixer.register_forward_hook(lambda _m, given, out, seen=seen: seen.append((out[0], given[2].valid)))
        measure(model, held_out)
        watch.remove()
        real = torch.cat([(y if valid is None else y[valid]).reshape(-1, y.shape[-1]) for y, valid in seen])
        for how, put in (("zero", torch.zeros(())), ("mean", real.double().mean(dim=0))):
            hook = mixer.register_forward_hook(lambda _m, _g, out, put=put: (put.to(out[0]).expand_as(out[0]), out[1]))
            found[f"{name}.{how}"] = measure(model, held_out)
            hook.remove()
    return found


PATTERNS = ["MA", "<M|A>-A", "MAMA", "A{output: next_mixer} M A", "MZM", "- M - A"]


def agree(found, wanted):
    assert list(found) == list(wanted)
    for name, metrics in wanted.items():
        assert found[name] == pytest.approx(metrics, rel=1e-6), name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_figures_are_those_of_reading_the_whole_model_anew(held_out, pattern):
    model = model_of(pattern)
    agree(knockouts(model, held_out), by_whole_readings(model, held_out))


def test_so_they_are_of_long_samples_and_padded_ones(held_out, monkeypatch):
    model, padded = model_of("MAM"), copy.copy(held_out)
    monkeypatch.setattr(knockout, "CHUNK", 5)
    monkeypatch.setattr(measuring, "CHUNK", 5)
    agree(knockouts(model, held_out), by_whole_readings(model, held_out))
    monkeypatch.undo()
    padded.batches = [{**batch, "valid": torch.arange(16).expand_as(batch["ids"]) > 3} for batch in held_out.batches]
    agree(knockouts(model, padded), by_whole_readings(model, padded))
    assert knockouts(model, padded) != knockouts(model, held_out)


def test_a_compiled_model_is_knocked_out_too(held_out):
    """Compiled code knows no hook that came later: what was measured before must not be measured again."""
    model, compiled = model_of("MA"), compile(model_of("MA"), backend="eager", dynamic=False)
    measure(compiled, held_out)
    agree(knockouts(compiled, held_out), knockouts(model, held_out))


def test_layers_below_a_branch_are_not_run_again(held_out):
    """For the means once; then each to be kept, and the branch's own and those above it, for zero and for mean."""
    model, runs = model_of("MAMA"), []
    for i, block in enumerate(model.blocks):
        block.mixer.register_forward_hook(lambda *_, i=i: runs.append(i))
    knockouts(model, held_out)
    batches = len(held_out.batches)
    assert [runs.count(i) for i in range(4)] == [batches * (1 + 1 + 2), batches * 6, batches * 8, batches * (1 + 8)]


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
    calls = []

    def above(_mixer, _given, out):
        """Every second call of it is that of layer 2."""
        calls.append(1)
        return (torch.zeros_like(out[0]), out[1]) if len(calls) % 2 == 0 else out

    model.blocks[0].mixer.register_forward_hook(above)
    assert measure(model, held_out) == pytest.approx(found["2.attention.zero"], rel=1e-6)


def test_the_model_is_as_before(held_out):
    model = model_of("MA")
    before, names = measure(model, held_out), list(model.state_dict())
    knockouts(model, held_out)
    assert measure(model, held_out) == before
    assert list(model.state_dict()) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_products_are_in_tf32_for_knock_outs_alone(held_out, monkeypatch):
    products, seen = torch.backends.cuda.matmul, []
    monkeypatch.setattr(knockout, "add", lambda *given: seen.append(products.allow_tf32) or measuring.add(*given))
    before = products.allow_tf32
    knockouts(model_of("M"), held_out)
    assert seen == [True] * 2 * len(held_out.batches)
    assert products.allow_tf32 == before
    assert not before
