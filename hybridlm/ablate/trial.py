"""One pack of trials from its first step to its results: what a process, a job of a cluster or a plain call works off.

A pack is the trials of one model that are trained side by side, each with its seed and its learning rate. What it has
done so far is in a checkpoint, written every so many seconds: killed at any instant and started again it comes to the
same results, bit for bit, and a result that is there is never found twice.

    FOLDER/packs/KEY/checkpoints/step-N    the newest one; gone when every result is written
    FOLDER/packs/KEY/progress.json         where it stands, for whoever looks on
    FOLDER/packs/KEY/log.txt               what it printed, where a process of its own ran it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from hybridlm.ablate.parts import plain
from hybridlm.ablate.results import FAILED, FORMAT, RESULT, Result, trial_folder
from hybridlm.compose import strict_yaml
from hybridlm.errors import CheckpointError
from hybridlm.files import atomic_write

if TYPE_CHECKING:
    from hybridlm.ablate.study import Trial

PACKS, PROGRESS, LOG = "packs", "progress.json", "log.txt"

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


def pending(folder: Path, trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """The trials without a result, and what was found damaged, which is put aside and will be done anew."""
    left, told = [], []
    for trial in trials:
        place = trial_folder(folder, trial.key)
        try:
            found = Result.read(place)
        except CheckpointError as error:
            found = None
            (place / RESULT).replace(place / f"{RESULT}.damaged")
            told.append(str(error))
        if found is None:
            left.append(trial)
    return left, told


def pack_folder(folder: str | Path, key: str) -> Path:
    """Where a study in `folder` keeps what a pack has done so far."""
    return Path(folder) / PACKS / key


def run_pack(pack: Pack, folder: str | Path, settings: Settings, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Work a pack off. Nothing is raised: whatever goes wrong is the outcome. stop: asked after each step."""
    folder, told = Path(folder), []
    try:
        with _held(folder, pack) as held:
            if not held:
                return Outcome("busy")
            left, told = pending(folder, pack.trials)
            if left:
                return _train(pack, left, folder, settings, stop, told)
            _clear(pack_folder(folder, pack.key))
            return Outcome("done", told=tuple(told))
    except Exception as error:
        return Outcome("failed", record(error, pack, folder), tuple(told))


def _train(
    pack: Pack, left: list[Trial], folder: Path, settings: Settings, stop: Callable[[], bool], told: list[str]
) -> Outcome:
    from hybridlm.ablate.training import Training  # torch and Lightning, in the process that needs them

    for trial in left:
        write_trial(folder, trial)
    place = pack_folder(folder, pack.key)
    place.mkdir(parents=True, exist_ok=True)
    training = Training(pack, left, place, settings, stop)
    told += training.resume()

    def found(result: Result) -> None:
        result.write(trial_folder(folder, result.key))
        (trial_folder(folder, result.key) / FAILED).unlink(missing_ok=True)

    if not training.run(found):
        return Outcome("stopped", told=tuple(told))
    _clear(place)
    return Outcome("done", told=tuple(told))


def write_trial(folder: Path, trial: Trial) -> None:
    """trial.yaml: all that decides a trial's numbers."""
    place, study = trial_folder(folder, trial.key), trial.study
    place.mkdir(parents=True, exist_ok=True)
    about = {
        "key": trial.key,
        "study": study.name,
        "arm": trial.arm.name,
        "seed": trial.seed,
        "lr": trial.lr,
        "spec": trial.arm.spec.to_dict(),
        "data": plain(asdict(study.data)),
        "eval": [plain(asdict(data)) for data in study.eval],
        "train": plain(asdict(study.train)),
    }
    atomic_write(place / "trial.yaml", strict_yaml.dump(about).encode())


@contextmanager
def _held(folder: Path, pack: Pack) -> Iterator[bool]:
    """Hold every trial of a pack; False if another runner has one of them. The system frees them if we die."""
    with ExitStack() as held:
        for trial in sorted(pack.trials, key=lambda trial: trial.key):
            place = trial_folder(folder, trial.key)
            place.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(place / ".lock", blocking=False))
            except Timeout:
                yield False
                return
        yield True


def record(error: Exception, pack: Pack, folder: Path) -> str:
    """Write failed.json for every trial of a pack that has no result. Returns the error in one line."""
    line = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    said = {"format": FORMAT, "error": line, "pack": pack.key, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    said["traceback"] = "".join(traceback.format_exception(error))
    for trial in pack.trials:
        place = trial_folder(folder, trial.key)
        if (place / RESULT).exists():
            continue
        try:
            place.mkdir(parents=True, exist_ok=True)
            atomic_write(place / FAILED, json.dumps(said, indent=1).encode())
        except OSError as full:  # the disk is full, say, which may be why the pack failed
            line += f" ({FAILED} could not be written either: {full})"
            break
    return line


def _clear(place: Path) -> None:
    """A pack whose results are written leaves its log alone."""
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    (place / PROGRESS).unlink(missing_ok=True)
