"""A training step as one object, and as one captured graph: here with a capture that only remembers the function."""

from __future__ import annotations

import pytest
import torch
from torch.optim import AdamW

import hybridlm as hl
from hybridlm.errors import SpecError
from hybridlm.train import graphs
from hybridlm.train.graphs import NonFiniteError, TrainStep, plain_groups
from hybridlm.train.optim import adamw, capped_schedule, parameter_groups

MOE = {"type": "moe", "experts": 4, "top_k": 2, "width": 16}


def model() -> hl.HybridLM:
    return hl.build(pattern="WA", d_model=32, vocab_size=40, mlp=MOE, seed=0)


def fused(of: hl.HybridLM) -> AdamW:
    return AdamW(parameter_groups(of, weight_decay=0.1, lr=1e-2), betas=(0.9, 0.95), fused=True)


def batch(i: int, t: int = 16) -> dict:
    ids = (torch.arange(2 * t).view(2, t) * (i + 3)) % 40
    return {"ids": ids, "targets": ids.roll(-1, 1)}


@pytest.fixture
def captured(monkeypatch):
    """Graphs on a CPU: what is captured runs again at every replay, on what lies in the buffers. Gives the captures."""
    functions = []

    def capture(run):
        functions.append(run)
        return run

    monkeypatch.setattr(graphs, "require_graph", lambda device, fused: None)
    monkeypatch.setattr(graphs, "aside", lambda device, run: run())
    monkeypatch.setattr(graphs, "capture", capture)
    return functions


def by_hand(clip: float | None, steps: int = 6) -> tuple[list[float], list[torch.Tensor]]:
    """A loop as everyone writes it."""
    of = model()
    optimizer = adamw(of, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    schedule, losses = capped_schedule(optimizer, lambda step: 1 / (1 + step), 1e-2), []
    for i in range(steps):
        losses.append(of(**batch(i)).loss)
        losses[-1].backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(of.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses], list(of.parameters())


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("graph", [False, True])
def test_it_is_the_loop_that_everyone_writes(graph, clip, captured):
    """Schedule included: it writes to the tensor that the captured step reads."""
    losses, weights = by_hand(clip)
    of = model()
    optimizer = fused(of)
    schedule, found = capped_schedule(optimizer, lambda step: 1 / (1 + step), 1e-2), []
    step = TrainStep(of, optimizer, clip=clip, graph=graph)
    for i in range(6):
        out = step(batch(i))
        schedule.step()
        found.append(out.loss.item())
        assert not out.loss.requires_grad
        assert len(out.router) == 2
    assert len(captured) == graph
    assert found == pytest.approx(losses, rel=1e-5)
    for one, other in zip(of.parameters(), weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in of.parameters())


def test_a_captured_step_reads_its_own_copy_of_a_batch(captured):
    of = model()
    step = TrainStep(of, fused(of), graph=True)
    for i in range(graphs.WARM_UP + 1):
        step(batch(i))
    given = batch(9)
    step._take(given)
    given["ids"].zero_()
    assert captured[0]().loss != step(given).loss


def test_what_a_step_cannot_do_is_said(captured, monkeypatch):
    of = model()
    step = TrainStep(of, fused(of), graph=True)
    step(batch(0))
    with pytest.raises(SpecError, match="batches of one shape"):
        step(batch(0, t=8))
    with pytest.raises(SpecError, match="batches of one shape"):
        step({**batch(0), "valid": torch.ones(2, 16, dtype=torch.bool)})
    monkeypatch.undo()
    with pytest.raises(SpecError, match="needs a GPU, and the model is on cpu"):
        TrainStep(of, fused(of), graph=True)
    with pytest.raises(SpecError, match="fused=True"):
        graphs.require_graph(torch.device("cuda"), fused=False)


@pytest.mark.parametrize("optimizer", [fused, lambda of: AdamW(of.parameters())])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_do_those_after_it(optimizer):
    of = model()
    step = TrainStep(of, optimizer(of), clip=1.0)
    step(batch(0))
    factors = [torch.nan, 1.0]
    state = {name: tensor.clone() for name, tensor in of.state_dict().items()}
    of.final_norm.register_forward_hook(lambda _, x, y: y * factors.pop(0))
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="no number"):
            step(batch(1))
    with pytest.raises(NonFiniteError, match="the optimiser step was not taken"):
        step.check()
    assert all(torch.equal(tensor, state[name]) for name, tensor in of.state_dict().items())


def test_settings_of_a_captured_optimiser_are_plain_again_in_a_checkpoint():
    state = {"param_groups": [{"lr": torch.tensor(0.5), "capturable": True, "betas": (0.9, 0.95)}]}
    plain_groups(state)
    assert state["param_groups"] == [{"lr": 0.5, "capturable": False, "betas": (0.9, 0.95)}]


# ----------------------------------------------------------------------------------------------------------------- fit
@pytest.fixture
def graphed(monkeypatch, captured, make_run):
    """make_run with cuda_graph=True, which is captured on a CPU."""
    monkeypatch.setattr("hybridlm.train.module._require_graph", lambda trainer: None)
    monkeypatch.setattr("hybridlm.train.module.adamw", lambda of, **_: fused(of))

    def make(name: str = "graphed", **settings):
        run = make_run(name, **settings)
        run.module.cuda_graph = True
        return run

    return make


def test_fit_with_captured_steps_is_fit(make_run, graphed, captured):
    """Clipping, schedule, dropout, validation; and a run goes on from either kind's checkpoint."""
    plain = make_run("plain", max_steps=8, every=4, keep=9)
    torch.manual_seed(5)
    weights = plain.fit()
    assert not captured
    ours = graphed(max_steps=8, every=4, keep=9)
    torch.manual_seed(5)
    alike(ours.fit(), weights)
    assert len(captured) == 1
    assert ours.trainer.callback_metrics.keys() == plain.trainer.callback_metrics.keys()
    for run, start in ((graphed("on", max_steps=8), plain), (make_run("off", max_steps=8), ours)):
        alike(run.fit(start.folder / "checkpoints" / "step-00000004"), weights)
        assert run.trainer.global_step == 8


def alike(found: dict, expected: dict) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_a_captured_run_stops_at_what_is_not_finite_and_names_the_layer(graphed):
    run = graphed(max_steps=8)
    step = TrainStep._run

    def spoil(self, batch):
        if self.steps == 5:
            with torch.no_grad():
                self.model.blocks[1].mixer.o_proj.weight[0, 0] = torch.nan
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "_run", spoil)
        with pytest.raises(NonFiniteError) as caught:
            run.fit()
    assert str(caught.value).startswith("step 6: the loss or its gradient is no number")
    assert "First layer with a non-finite activation: blocks.1.mixer.o_proj" in str(caught.value)


def test_what_keeps_a_run_from_being_captured_is_said(make_run, monkeypatch):
    run = make_run()
    run.module.cuda_graph = True
    with pytest.raises(SpecError, match="needs a GPU"):
        run.fit()
    monkeypatch.setattr("hybridlm.train.module.require_graph", lambda device, fused: None)
    run = make_run("accumulated", accumulate_grad_batches=2)
    run.module.cuda_graph = True
    with pytest.raises(SpecError, match="accumulate_grad_batches must be 1, not 2"):
        run.fit()
