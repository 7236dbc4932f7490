"""How a pack is trained: evaluations when due, early stops and lost numbers of one member alone, text, precision."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hybridlm.ablate import training
from hybridlm.ablate.job import Settings
from hybridlm.ablate.parts import Data
from hybridlm.ablate.results import Result, trial_folder
from hybridlm.ablate.run import packs_of
from hybridlm.ablate.samples import PackStream
from hybridlm.ablate.trial import run_pack
from hybridlm.compose.build import build
from hybridlm.train.optim import schedule_factor
from tests.ablate.subjects import TASK, small_study


def run_first(study, folder, **settings):
    """The results of the first pack of arm hybrid."""
    pack = next(pack for pack in packs_of(study.runs(), "seed") if pack.arm == "hybrid")
    outcome = run_pack(pack, folder, Settings(**settings))
    assert outcome.ended == "done", outcome
    return [Result.read(trial_folder(folder, trial.key)) for trial in pack.trials]


def close(one, other, limit=1e-4):
    """Two results with the same numbers up to rounding."""
    for (step, found), (at, wanted) in zip(one.curve, other.curve, strict=True):
        assert step == at
        assert found["loss"] == pytest.approx(wanted["loss"], rel=limit)


def test_it_is_evaluated_when_it_is_due_and_at_the_end(tmp_path):
    for result in run_first(small_study(steps=10, seeds=1, tests=[]), tmp_path):
        assert [step for step, _ in result.curve] == [4, 8, 10]
        assert result.final == result.curve[-1][1]
        assert (result.steps, result.solved_at, result.diverged_at) == (10, None, None)
        assert result.device == "cpu"


def test_who_has_solved_it_is_frozen_and_the_others_go_on(tmp_path):
    """At the high learning rate the loss gets to the bar first."""
    plain = small_study(steps=12, seeds=1, lr=(1e-4, 1e-2), tests=[])
    slow, fast = run_first(plain, tmp_path / "plain")
    bar = fast.curve[1][1]["loss"]
    assert slow.curve[-1][1]["loss"] > bar
    study = small_study(steps=12, seeds=1, lr=(1e-4, 1e-2), tests=[], stop_at={"loss": bar})
    stays, ends = run_first(study, tmp_path / "stop")
    assert (ends.solved_at, ends.steps) == (8, 8)
    assert ends.curve == fast.curve[:2]
    assert ends.final == fast.curve[1][1]
    assert (stays.solved_at, stays.curve) == (None, slow.curve)


def test_a_pack_ends_when_all_have_solved_it_and_goes_on_from_there(tmp_path, monkeypatch):
    study = small_study(steps=1000, seeds=1, tests=[], stop_at={"loss": 100.0})
    result = training.Training._result
    monkeypatch.setattr(training.Training, "_result", lambda *_: 1 / 0)
    pack = packs_of(study.runs(), "seed")[0]
    assert run_pack(pack, tmp_path, Settings()).ended == "failed"
    monkeypatch.setattr(training.Training, "_result", result)
    assert run_pack(pack, tmp_path, Settings()).ended == "done"
    for trial in pack.trials:
        found = Result.read(trial_folder(tmp_path, trial.key))
        assert (found.steps, found.solved_at, len(found.curve)) == (4, 4, 1)


def test_the_time_of_every_process_counts_and_that_of_measuring_too(tmp_path, monkeypatch):
    """On a clock that a step of training moves on by 1,000 seconds, and the knock-outs of a trial by 100."""
    clock, step, knocked_out = [0.0], training.LitPack.training_step, training.knockouts

    def on(seconds, function):
        def later(*args):
            clock[0] += seconds
            return function(*args)

        return later

    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    monkeypatch.setattr(training.LitPack, "training_step", on(1000, step))
    monkeypatch.setattr(training, "knockouts", on(100, knocked_out))
    pack = packs_of(small_study(steps=4, seeds=1).runs(), "seed")[0]
    while run_pack(pack, tmp_path, Settings(), stop=lambda: True).ended != "done":
        pass
    found = [Result.read(trial_folder(tmp_path, trial.key)) for trial in pack.trials]
    assert [result.seconds for result in found] == [4000 / len(found) + 100] * len(found)


@pytest.mark.parametrize("way", ["apart", "stacked"])
def test_numbers_that_one_member_loses_end_it_alone(tmp_path, monkeypatch, way):
    study = small_study(steps=8, seeds=1, tests=[])
    whole = run_first(study, tmp_path / "whole", way=way)
    often = run_first(small_study(steps=8, seeds=1, tests=[], eval_every=1), tmp_path / "often", way=way)
    find = training.LitPack.find_gradients

    def lose(self, batches):
        find(self, batches)
        if self.trainer.global_step == 5:
            self.members.gradient[1, 3] = math.nan

    monkeypatch.setattr(training.LitPack, "find_gradients", lose)
    stays, lost = run_first(study, tmp_path / "lost", way=way)
    assert replace(stays, seconds=0) == replace(whole[0], seconds=0)
    assert (lost.diverged_at, lost.steps) == (6, 6)
    assert lost.curve[0] == whole[1].curve[0]
    assert [step for step, _ in lost.curve] == [4, 8]  # what it knew before step 6
    assert lost.final == dict(often[1].curve)[5]  # and the sound gradients of steps 7 and 8 changed nothing


def test_members_begin_with_the_weights_of_their_seeds():
    study = small_study(seeds=3, lr=(1e-3,))
    trials = [trial for trial in study.runs() if trial.arm.name == "hybrid"]
    module = training.LitPack(study, trials, torch.device("cpu"), None)
    assert [trial.seed for trial in trials] == [0, 1, 2]
    for model, seed in zip(module.members.models, range(3), strict=True):
        for one, other in zip(model.parameters(), build(trials[0].arm.spec, seed=seed).parameters(), strict=True):
            assert torch.equal(one, other)
    assert len({row.sum().item() for row in module.weights}) == 3


def test_a_stack_finds_what_single_runs_find(tmp_path):
    study = small_study(steps=8, seeds=1)
    stack = run_first(study, tmp_path / "stack", way="stacked")
    for one, other in zip(stack, run_first(study, tmp_path / "apart", way="apart"), strict=True):
        close(one, other)


def test_what_cannot_be_stacked_goes_one_by_one_and_says_so(tmp_path, monkeypatch, capsys):
    study = small_study(steps=8, seeds=1, tests=[])
    apart = run_first(study, tmp_path / "apart")

    def no_rule(*_):
        def step(batches, active):
            raise RuntimeError("no batching rule")

        return step

    monkeypatch.setitem(training.WAYS, "stacked", no_rule)
    found = run_first(study, tmp_path / "stack", way="stacked")
    assert [replace(one, seconds=0) for one in found] == [replace(one, seconds=0) for one in apart]
    assert "one by one, as they cannot be stacked: no batching rule" in capsys.readouterr().err


def test_every_arm_sees_the_same_samples_in_the_same_order():
    study, other = small_study(), small_study({"hybrid": {}, "third": {"d_model": 64}})
    for one, two, _ in zip(PackStream(study, [0, 1, 0], 0), PackStream(other, [1, 0], 0), range(3), strict=False):
        assert sorted(one) == sorted(two) == [0, 1]
        assert torch.equal(one[1]["ids"], two[1]["ids"])
        assert not torch.equal(one[0]["ids"], one[1]["ids"])


def test_a_stream_goes_on_from_any_step():
    study = small_study()
    whole = [batch for batch, _ in zip(PackStream(study, [0], 0), range(4), strict=False)]
    (rest, *_) = (batch for batch, _ in zip(PackStream(study, [0], 3), range(1), strict=False))
    assert torch.equal(whole[3][0]["ids"], rest[0]["ids"])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_schedule_is_that_of_fit(schedule):
    study = small_study(steps=40, schedule=schedule, warmup=3, final_lr=0.1)
    module = training.LitPack(study, study.runs()[:1], torch.device("cpu"), None)
    rule = {"total": 40, "schedule": schedule, "warmup": 3, "decay": training.WSD_DECAY, "final": 0.1}
    assert [module.factor(step) for step in range(40)] == [schedule_factor(step, **rule) for step in range(40)]


def test_held_out_samples_lie_where_the_members_do_even_after_lightning_has_moved_the_module():
    """On a GPU its end moves the module to the CPU and the members stay; meta stands for the CPU here."""
    study = small_study()
    module = training.LitPack(study, study.runs()[:1], torch.device("cpu"), None)
    module.to("meta")
    (held_out,) = module.held_out.values()
    assert {tensor.device.type for batch in held_out.batches for tensor in batch.values()} == {"cpu"}


def test_text_has_its_own_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 300)
    text = Data(text=str(tmp_path / "a.txt"), context=32, held_out=5)
    study = small_study({"hybrid": {"vocab_size": 256}, "pure": {"pattern": "MM"}}, steps=4, seeds=1, tests=[])
    for result in run_first(replace(study, data=text), tmp_path / "out"):
        assert set(result.final) == {"loss", "bits_per_byte"}
        assert set(result.knockouts["0.mamba2.zero"]) == {"loss", "bits_per_byte"}


@pytest.mark.deep
@pytest.mark.parametrize("way", ["apart", "stacked"])
def test_bf16_is_near_float32(tmp_path, way):
    exact = run_first(small_study(steps=4, seeds=1, tests=[]), tmp_path / "float32")
    near = run_first(small_study(steps=4, seeds=1, tests=[], precision="bf16"), tmp_path / "bf16", way=way)
    assert near[0].final != exact[0].final
    close(near[0], exact[0], 0.02)


def test_further_evaluations_are_of_their_own_samples(tmp_path):
    task = {"task": "mqar", "params": TASK, "held_out": 24}
    tests = [{"name": "same", **task}, {"name": "long", **task, "params": {**TASK, "length": 64}}]
    for result in run_first(small_study(steps=4, seeds=1, tests=tests), tmp_path):
        assert result.evals["same"] == result.final
        assert result.evals["long"]["loss"] != result.final["loss"]


def test_further_evaluations_have_their_names(tmp_path):
    for result in run_first(small_study(steps=4, seeds=1), tmp_path):
        assert set(result.evals) == {"long"}
        assert set(result.evals["long"]) == {"loss", "accuracy", "solved"}
        assert set(result.knockouts) == {
            f"{name}.{how}" for name in ("0.mamba2", "1.attention") for how in ("zero", "mean")
        }
