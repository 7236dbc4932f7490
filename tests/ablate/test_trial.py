"""One pack: what is kept of it between two tries comes to the same results, whatever is trained."""

from dataclasses import replace

import torch

from hybridlm.ablate import training
from hybridlm.ablate.job import Settings
from hybridlm.ablate.parts import StopAt
from hybridlm.ablate.results import Result, trial_folder
from hybridlm.ablate.run import packs_of
from hybridlm.ablate.trial import run_pack
from tests.ablate.subjects import small_study


def in_one_go_and_in_pieces(study, tmp_path):
    """Every result of the first pack, run through, and stopped after each step."""
    pack = packs_of(study.runs(), "seed")[0]
    run_pack(pack, tmp_path / "whole", Settings())
    while run_pack(pack, tmp_path / "pieces", Settings(), stop=lambda: True).ended != "done":
        torch.rand(3)
    return [
        [replace(Result.read(trial_folder(tmp_path / how, trial.key)), seconds=0.0) for trial in pack.trials]
        for how in ("whole", "pieces")
    ]


def test_who_is_frozen_stays_so_when_the_pack_goes_on(tmp_path):
    """The one with the high learning rate gets to the bar; decay and momentum move it no more."""
    study = small_study({"hybrid": {}, "pure": {"pattern": "MM"}}, steps=12, seeds=1, lr=(1e-5, 1e-2), tests=[])
    (slow, fast), _ = in_one_go_and_in_pieces(study, tmp_path / "plain")
    bar = fast.curve[1][1]["loss"]
    assert bar < min(found["loss"] for _, found in [fast.curve[0], *slow.curve])
    study = replace(study, train=replace(study.train, stop_at=StopAt(metric="loss", value=bar)))
    whole, pieces = in_one_go_and_in_pieces(study, tmp_path / "stop")
    assert [result.solved_at for result in whole] == [None, 8]
    assert pieces == whole


def test_biases_of_routers_go_on_too(tmp_path):
    experts = {"type": "moe", "experts": 4, "top_k": 1, "width": 16, "score": "sigmoid", "bias_rate": 0.1}
    study = small_study({"a": {"blocks.M.mlp": experts}, "b": {}}, steps=6, seeds=1, lr=(1e-2,), tests=[])
    study = replace(study, arms=study.arms[:1])
    whole, pieces = in_one_go_and_in_pieces(study, tmp_path)
    assert pieces == whole


def test_masks_of_dropout_go_on_too(tmp_path):
    """They are a function of the step, whatever else has drawn numbers in between."""
    study = small_study({"hybrid": {}, "other": {"d_model": 64}}, steps=3, eval_every=2, seeds=1, dropout=0.3, tests=[])
    whole, pieces = in_one_go_and_in_pieces(study, tmp_path)
    assert pieces == whole


def test_a_crash_between_two_results_fails_only_the_second(tmp_path, monkeypatch):
    (pack, *_), result = packs_of(small_study(steps=4, seeds=1, tests=[]).runs(), "seed"), training.Training._result
    crash = lambda self, module, k, *rest: result(self, module, k, *rest) if k == 0 else 1 / 0  # noqa: E731
    monkeypatch.setattr(training.Training, "_result", crash)
    assert run_pack(pack, tmp_path, Settings()).ended == "failed"
    first, second = (trial_folder(tmp_path, trial.key) for trial in pack.trials)
    assert sorted(path.name for path in first.iterdir()) == [".lock", "result.json", "trial.yaml"]
    assert sorted(path.name for path in second.iterdir()) == [".lock", "failed.json", "trial.yaml"]
