"""Checkpoints that are whole or not there, and that notice a flipped bit.

A checkpoint is a folder: train.ckpt (what Lightning saves: weights, optimiser, loops, callbacks), spec.json (the
resolved spec) and manifest.json (size and sha256 of both). It is written beside its place and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from hybridlm.errors import CheckpointError
from hybridlm.files import verify_manifest, write_manifest

FILE, SPEC = "train.ckpt", "spec.json"


class SafeCheckpointIO(CheckpointIO):
    """How the trainer reads and writes checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the folder `path`. OSError (a full disk, say) leaves what was there as it was."""
        assert storage_options is None, "a checkpoint is a local folder"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            with open(work / FILE, "wb") as file:
                _save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            (work / SPEC).write_text(json.dumps(checkpoint.get("spec"), indent=2))
            write_manifest(work, [FILE, SPEC])
            replace_folder(work, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint folder (or its train.ckpt). Tensors and plain values only: never arbitrary pickles.

        Raises:
            CheckpointError: missing, incomplete or damaged.
        """
        folder = checkpoint_folder(path)
        verify_manifest(folder, [FILE])
        try:
            return torch.load(folder / FILE, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{folder / FILE}: cannot be read as a checkpoint: {error}") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint folder."""
        shutil.rmtree(path, ignore_errors=True)


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's zip writer hides the system's error behind its own
        cause = error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise OSError(errno.EIO, f"torch.save: {error}") from error


def replace_folder(work: Path, place: Path) -> None:
    """Rename a finished folder into place. What was there is removed only afterwards."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(work, place)
    except BaseException:
        if old.exists():
            os.rename(old, place)
        raise
    handle = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the renaming itself
    finally:
        os.close(handle)
    shutil.rmtree(old, ignore_errors=True)


def checkpoint_folder(path: str | Path) -> Path:
    """A checkpoint from what a user names: its folder, its train.ckpt, or a run folder (the newest one there).

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.name == FILE and path.is_file():
        return path.parent
    if (path / FILE).exists():
        return path
    found = _saved_in(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path}: no checkpoint there; give a run folder, or one of its checkpoints/step-*")
    return found[-1]


def _saved_in(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder for them, the newest last."""
    return sorted(saved for saved in folder.glob("step-*") if (saved / FILE).is_file())


def whole_checkpoint(path: str | Path) -> Path:
    """The checkpoint that `path` names, every file of it as it was saved. CheckpointError names an earlier one."""
    folder = checkpoint_folder(path)
    try:
        verify_manifest(folder, [FILE, SPEC])
    except CheckpointError as error:
        others = [saved for saved in _saved_in(folder.parent) if saved != folder]
        hint = f"\nThere is another one; to go on from it: --resume {others[-1]}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error
    return folder


def saved_spec(folder: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint, without its weights."""
    return json.loads((folder / SPEC).read_text())


def put_aside_later(folder: Path, step: int) -> None:
    """Rename the checkpoints of steps that a run, resumed from an earlier one, is about to take anew."""
    for saved in folder.glob("step-*"):
        if int(saved.name.removeprefix("step-")) > step:
            aside = saved.with_name(f"superseded-{saved.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(saved, aside)
