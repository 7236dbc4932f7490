"""Packs on a GPU: what is captured as one CUDA graph finds what every member finds alone."""

import pytest
import torch

from hybridlm.ablate import training
from hybridlm.ablate.captured import WORTH_COMPILING, Captured
from hybridlm.ablate.job import Settings
from hybridlm.ablate.pack import Members, RowAdamW, apart
from hybridlm.ablate.run import packs_of
from hybridlm.ablate.trial import run_pack
from hybridlm.compose.spec import ModelSpec
from hybridlm.registry import mixers
from tests.ablate.subjects import small_study

pytestmark = pytest.mark.gpu

SEEDS, RATES = (0, 1, 0, 1), (1e-3, 1e-3, 1e-2, 1e-2)
STEPS = 8  # three as they are, the capture, and replays


def batches(step, length):
    """Two seeds' batches, which members share."""
    random = torch.Generator().manual_seed(step)
    drawn = [torch.randint(16, (2, 4, length + 1), generator=random) for _ in range(2)]
    held = [{"ids": ids[0, :, :length].cuda(), "targets": ids[1, :, :length].cuda()} for ids in drawn]
    return [held[seed] for seed in SEEDS]


def trained(mixer, way, precision="float32", length=lambda step: 40, active=lambda step: [True] * 4):
    """The weights (m, n) and every step's losses."""
    blocks = {"X": {"mixer": mixer, "mlp": "swiglu"}}
    spec = ModelSpec.from_dict({"d_model": 64, "vocab_size": 16, "pattern": "XX", "blocks": blocks})
    members = Members(spec, SEEDS, 0.1, torch.device("cuda"))
    optimizer, find, losses = (
        RowAdamW(members, torch.tensor(RATES, device="cuda"), clip=1.0),
        way(members, precision),
        [],
    )
    for step in range(STEPS):
        members.gradient.zero_()
        losses.append(find(batches(step, length(step)), active(step)).clone())
        optimizer.step(active=torch.tensor(active(step), device="cuda"))
    return members.weights.detach(), torch.stack(losses)


def close(found, wanted, limit):
    error = (found - wanted).nan_to_num().norm() / wanted.nan_to_num().norm()
    assert error < limit, f"{error:.2e}"
    assert torch.equal(found.isnan(), wanted.isnan())


@pytest.mark.parametrize("mixer", mixers.names())
def test_captured_members_find_what_they_find_apart(mixer):
    for found, wanted in zip(trained(mixer, Captured), trained(mixer, apart), strict=True):
        close(found, wanted, 1e-4)


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_in_bf16_too(mixer):
    close(trained(mixer, Captured, "bf16")[1], trained(mixer, apart, "bf16")[1], 5e-3)


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_what_is_compiled_first_finds_the_same(mixer):
    def compiled(members, precision):
        return Captured(members, precision, WORTH_COMPILING)

    for found, wanted in zip(trained(mixer, compiled), trained(mixer, apart), strict=True):
        close(found, wanted, 1e-4)


def test_batches_of_another_length_and_members_that_have_ended_begin_anew():
    def said(way):
        return trained("mamba2", way, length=lambda step: 40 - 8 * (step > 4), active=lambda step: [True, step < 6] * 2)

    for found, wanted in zip(said(Captured), said(apart), strict=True):
        close(found, wanted, 1e-4)


def test_a_pack_that_was_stopped_before_it_was_measured_is_measured_when_it_goes_on(tmp_path, monkeypatch):
    """Trained to its end, and so with nothing left for Lightning to do but to move the module to the CPU."""
    study = small_study(steps=4, seeds=1)
    (pack, *_) = packs_of(study.runs(), "seed")
    monkeypatch.setattr(training.Training, "_measure", lambda *_: False)
    assert run_pack(pack, tmp_path, Settings(device="cuda")).ended == "stopped"
    monkeypatch.undo()
    assert run_pack(pack, tmp_path, Settings(device="cuda")).ended == "done"
