"""What is recorded and kept for the next call: when, for how long, for whom, and what makes it stale."""

import gc
import weakref

import pytest
import torch

import hybridlm as hl
from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.infer import Sampler, Stream, graphs, release
from hybridlm.state import leaves
from tests.infer.common import V, build, prompts_of
from tests.infer.tape import NoLooking, Tape, TapeRecorder

pytestmark = pytest.mark.usefixtures("log")


# --------------------------------------------------------------------------------------------- what cannot be recorded
def test_a_graph_needs_a_gpu(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(SpecError, match="cuda_graph: the model is on cpu, and a CUDA graph needs a GPU"):
        hl.generate(build("M"), [[1]], 2, cuda_graph=True)
    assert len(hl.generate(build("M"), [[1]], 30)[0]) == 31


def test_hooks_are_not_passed_over(log):
    """By itself a hooked model is not recorded; asked to, it refuses; a hook that comes later is called."""
    model, called = build("M"), []
    hook = model.blocks[0].mixer.register_forward_hook(lambda *_: called.append(1))
    hl.generate(model, [[1]], 30)
    assert len(called) == 30
    with pytest.raises(UnsupportedError, match="cuda_graph: the model has forward hooks"):
        hl.generate(model, [[1]], 30, cuda_graph=True)
    hook.remove()
    stream = Stream(model, [[1]], 30)
    for _ in range(5):
        next(stream)
    model.blocks[0].mixer.register_forward_hook(lambda *_: called.append(1))
    list(stream)
    assert len(called) == 30 + 25


class Waits(torch.nn.Module):
    def forward(self, x):
        return x * (1.0 if x.sum().item() else 2.0)


def test_what_cannot_be_recorded_goes_on_without():
    model = build("M")
    model.final_norm = torch.nn.Sequential(model.final_norm, Waits())
    with pytest.raises(UnsupportedError, match="a step of this model cannot be recorded: item waits"):
        hl.generate(model, [[1]], 20, cuda_graph=True)
    expected = hl.generate(model, [[1]], 20, cuda_graph=False)
    with pytest.warns(RuntimeWarning, match="going on without, which is slower"):
        found = hl.generate(model, [[1]], 20)
    assert torch.equal(found[0], expected[0])


# ------------------------------------------------------------------------------------------------- what a model keeps
def test_a_second_call_records_nothing(log):
    model = build()
    for _ in range(2):
        hl.generate(model, prompts_of([4, 4]), 20)
    assert log.count("record") == 1
    hl.generate(model, prompts_of([4, 4]), 20, temperature=1.0)
    assert log.count("record") == 2
    release(model)
    hl.generate(model, prompts_of([4, 4]), 20)
    assert log.count("record") == 3


def replace_a_weight(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())


def replace_a_module(model):
    model.lm_head = torch.nn.Linear(32, V, bias=True, dtype=torch.float64)


def replace_data(model):
    model.lm_head.weight.data = model.lm_head.weight.flip(0).clone()


def write_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0).clone())


@pytest.mark.parametrize("change", [replace_a_weight, replace_a_module, replace_data, write_in_place])
@pytest.mark.parametrize("midway", [False, True])
def test_no_recording_goes_stale(change, midway, log):
    """Law C22, between calls and between steps."""
    results = []
    for graph in (False, True):
        torch.manual_seed(0)
        model = build("MA")
        hl.generate(model, [[1, 2]], 20, cuda_graph=graph)
        stream = Stream(model, [[1, 2]], 20, cuda_graph=graph)
        tokens = [next(stream) for _ in range(5 if midway else 0)]
        change(model)
        results.append(torch.cat([*tokens, *stream]))
    assert torch.equal(*results)
    assert log.count("record") == (1 if change is write_in_place else 2)


def test_settings_and_modes_are_not_baked_in():
    model = build("SS", torch.float64, dropout=0.5)
    model.train()
    for scale in (1.0, 2.0):
        model.set_time_scale(scale)
        expected = hl.generate(model, [[1, 2]], 20, cuda_graph=False)
        assert torch.equal(hl.generate(model, [[1, 2]], 20, cuda_graph=True)[0], expected[0])
        model.eval()


def test_memory_is_given_back(monkeypatch):
    model = build()
    hl.generate(model, [[1, 2]], 20, cuda_graph=True)
    (rig,) = graphs._kept[model]
    seen = weakref.ref(rig)
    del rig
    monkeypatch.setattr(graphs, "SHARE", 0.0)  # as if it were a large part of the memory
    hl.generate(model, [[1, 2]], 20, cuda_graph=True)
    gc.collect()
    assert seen() is None
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "recorder_for", TapeRecorder)
    for length in range(100, 1200, 100):
        hl.generate(model, torch.ones(1, length, dtype=torch.int64), 2, cuda_graph=True)
    assert len(graphs._kept[model]) == graphs.KEPT
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not list(graphs._kept)


def test_a_state_that_was_taken_is_the_takers_own():
    model = build()
    state = Stream(model, [[1, 2]], 20, cuda_graph=True).state
    before = [tensor.clone() for leaf in leaves(state.layers) for tensor in leaf.tensors().values()]
    hl.generate(model, [[3, 4]], 20, cuda_graph=True)
    after = [tensor for leaf in leaves(state.layers) for tensor in leaf.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_memory_has_one_owner():
    """An empty state lies in a kept rig's memory; one who takes it for another sampler takes it from the rig."""
    model, prompts = build(), prompts_of([4, 4])
    hl.generate(model, prompts[:1], 20, cuda_graph=True)
    hot = {"sampler": Sampler(temperature=1.0), "seed": 3}
    pair = [Stream(model, prompts[:1], 20, cuda_graph=True, **hot), Stream(model, prompts[1:], 20, cuda_graph=True)]
    steps = [torch.cat(row) for row in zip(*zip(*pair, strict=True), strict=True)]
    assert torch.equal(steps[0], Stream(model, prompts[:1], 20, cuda_graph=False, **hot).rest()[0])
    assert torch.equal(steps[1], Stream(model, prompts[1:], 20, cuda_graph=False).rest()[0])


def test_two_streams_at_once_do_not_share():
    model, prompts = build(), prompts_of([4, 4])
    hl.generate(model, prompts[:1], 20, cuda_graph=True)
    pair = [Stream(model, [prompt], 20, cuda_graph=True) for prompt in prompts]
    steps = [torch.cat(row) for row in zip(*zip(*pair, strict=True), strict=True)]
    for prompt, row in zip(prompts, steps, strict=True):
        assert torch.equal(row, hl.generate(model, [prompt], 20, cuda_graph=False)[0][4:])


# ------------------------------------------------------------------------------------------------------------ the tape
def test_the_tape_is_a_fair_stand_in():
    """It runs nothing of Python again, leaves memory as it was while it records, and refuses what waits."""
    x, calls = torch.zeros(3), []
    tape = Tape()
    with tape:
        x.add_(1).view(3)[1:].mul_(2)
        calls.append(1)
    tape.put_back()
    assert x.tolist() == [0, 0, 0]
    tape.replay()
    tape.replay()
    assert x.tolist() == [2, 6, 6]
    assert calls == [1]
    looks = [lambda: x.sum().item(), lambda: x.tolist(), lambda: bool(x.any()), lambda: range(3)[x[0].long()]]
    shapes = [lambda: x[x > 0], lambda: x.nonzero(), lambda: x.unique(), lambda: torch.tensor([1.0])]
    for waits in looks + shapes:
        with pytest.raises(RuntimeError, match="waits for the device"), torch.inference_mode(), Tape(), NoLooking():
            waits()
