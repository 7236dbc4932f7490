"""Checkpoints are whole or not there, and a single flipped bit is noticed."""

from __future__ import annotations

import errno
import json
import resource
import subprocess

import pytest
import torch

from hybridlm.errors import CheckpointError
from hybridlm.train import checkpoint as checkpoint_module
from hybridlm.train.checkpoint import SafeCheckpointIO, checkpoint_folder

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "spec": {"d_model": 4}, "global_step": 3}


@pytest.fixture
def io():
    return SafeCheckpointIO()


@pytest.fixture
def saved(io, tmp_path):
    io.save_checkpoint(CONTENT, tmp_path / "checkpoints" / "step-00000003")
    return tmp_path / "checkpoints" / "step-00000003"


def test_round_trip_with_the_spec_beside(io, saved):
    loaded = io.load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert loaded["global_step"] == 3
    assert json.loads((saved / "spec.json").read_text()) == {"d_model": 4}
    assert [f.name for f in saved.parent.iterdir()] == [saved.name]  # nothing temporary is left


def test_names_that_find_a_checkpoint(io, saved, tmp_path):
    io.save_checkpoint(CONTENT, saved.with_name("step-00000012"))
    assert checkpoint_folder(saved) == saved
    assert checkpoint_folder(saved / "train.ckpt") == saved
    assert checkpoint_folder(tmp_path).name == "step-00000012"
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["train.ckpt", "spec.json"])
def test_every_kind_of_damage_is_noticed(io, saved, file):
    good = (saved / file).read_bytes()
    generator = torch.Generator().manual_seed(0)
    damages = [good[: len(good) // 2], good[:-1], b"", good + b"\0"]
    for _ in range(20):
        place = int(torch.randint(len(good), (), generator=generator))
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        damages.append(bytes(flipped))
    for damaged in damages:
        (saved / file).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=file):
            io.load_checkpoint(saved)
    (saved / file).unlink()
    with pytest.raises(CheckpointError):
        io.load_checkpoint(saved)


def test_a_pickle_that_runs_code_is_refused(io, tmp_path):
    io.save_checkpoint({"spec": {}, "evil": subprocess.Popen}, tmp_path / "step-1")
    with pytest.raises(CheckpointError, match="cannot be read"):
        io.load_checkpoint(tmp_path / "step-1")


def test_saving_over_a_checkpoint_replaces_it(io, saved):
    io.save_checkpoint({**CONTENT, "global_step": 4}, saved)
    assert io.load_checkpoint(saved)["global_step"] == 4
    assert len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize("step", ["_save", "write_manifest", "replace_folder"])
def test_a_failure_at_any_point_leaves_the_old_one(io, saved, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, step, full)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint({**CONTENT, "global_step": 4}, saved)
    assert io.load_checkpoint(saved)["global_step"] == 3
    assert len(list(saved.parent.iterdir())) == 1


@pytest.fixture
def small_files_only():
    """The system refuses files over 20 kB, as a full disk refuses them: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_cuts_off(io, saved, small_files_only):
    with pytest.raises(OSError, match=r"large|torch\.save"):
        io.save_checkpoint({"w": torch.zeros(100_000)}, saved)
    assert io.load_checkpoint(saved)["global_step"] == 3
    assert len(list(saved.parent.iterdir())) == 1
