"""A pack of trials as a piece of work: which trials, how they run, where it is kept, and how it ended.

A pack is the trials of one model that are trained side by side, each with its seed and its learning rate.

    FOLDER/packs/KEY/checkpoints/step-N    the newest one; gone when every result is written
    FOLDER/packs/KEY/pack.json             which trials it is; gone at the same time
    FOLDER/packs/KEY/progress.json         where it stands, for whoever looks on
    FOLDER/packs/KEY/log.txt               what it printed, where a process of its own ran it
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hybridlm.ablate.study import Trial

PACKS, ABOUT, PROGRESS, LOG = "packs", "pack.json", "progress.json", "log.txt"
CHECKPOINTS = "checkpoints"

Ended = Literal["done", "busy", "stopped", "failed"]


@dataclass(frozen=True)
class Pack:
    """Trials of one arm. key: of the set of them; workers: processes that draw their training samples ahead."""

    trials: tuple[Trial, ...]
    workers: int = 0

    @property
    def key(self) -> str:
        text = " ".join(trial.key for trial in self.trials)
        return hashlib.blake2b(text.encode()).hexdigest()[:16]

    @property
    def arm(self) -> str:
        """The name of the arm."""
        return self.trials[0].arm.name

    def __str__(self) -> str:
        seeds, rates = sorted({t.seed for t in self.trials}), sorted({t.lr for t in self.trials})
        return f"{self.arm}, seeds {', '.join(map(str, seeds))}, lr {', '.join(f'{lr:g}' for lr in rates)}"


@dataclass(frozen=True)
class Outcome:
    """How work on a pack ended. done: every trial has a result; busy: another runner holds one of them; stopped: it
    was told to, and goes on from a checkpoint; failed: `error` says how, and so does each trial's failed.json."""

    ended: Ended
    error: str = ""
    told: tuple[str, ...] = ()  # what was found damaged, and done anew


@dataclass(frozen=True)
class Settings:
    """How a pack runs, which changes none of its numbers.

    device: cpu, or cuda. save_every: seconds between checkpoints. threads: of a CPU; None: as torch has them.
    way:    to the gradients of its members, see pack.py; None: the quickest.
    """

    device: str = "cpu"
    save_every: float = 60.0
    threads: int | None = None
    way: Literal["apart", "stacked", "captured"] | None = None


def pack_folder(folder: str | Path, key: str) -> Path:
    """Where a study in `folder` keeps what a pack has done so far."""
    return Path(folder) / PACKS / key
