"""One pack of trials from its first step to its results: what a process, a job of a cluster or a plain call works off.

What it has done so far is in a checkpoint, written every so many seconds: killed at any instant and started again it
comes to the same results, bit for bit, and a result that is there is never found twice.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hybridlm.ablate.job import ABOUT, CHECKPOINTS, PROGRESS, Outcome, Pack, Settings, pack_folder
from hybridlm.ablate.parts import plain
from hybridlm.ablate.results import FAILED, FORMAT, RESULT, Result, trial_folder
from hybridlm.compose import strict_yaml
from hybridlm.errors import CheckpointError
from hybridlm.files import atomic_write

if TYPE_CHECKING:
    from hybridlm.ablate.study import Trial


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


def run_pack(pack: Pack, folder: str | Path, settings: Settings, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Work a pack off. Nothing is raised: whatever goes wrong is the outcome. stop: asked after each step."""
    folder, told = Path(folder), []
    try:
        with held(folder, [trial.key for trial in pack.trials]) as ours:
            if not ours:
                return Outcome("busy")
            left, told = pending(folder, pack.trials)
            if left:
                return _train(pack, left, folder, settings, stop, told)
            clear(pack_folder(folder, pack.key))
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
    about = {"format": FORMAT, "pack": str(pack), "trials": [trial.key for trial in pack.trials]}
    atomic_write(place / ABOUT, json.dumps(about).encode())
    training = Training(pack, left, place, settings, stop)
    told += training.resume()

    def found(result: Result) -> None:
        result.write(trial_folder(folder, result.key))
        (trial_folder(folder, result.key) / FAILED).unlink(missing_ok=True)

    if not training.run(found):
        return Outcome("stopped", told=tuple(told))
    clear(place)
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
def held(folder: Path, keys: Sequence[str]) -> Iterator[bool]:
    """Hold trials by their keys; False if another runner has one of them. The system frees them if we die."""
    with ExitStack() as locks:
        for key in sorted(keys):
            place = trial_folder(folder, key)
            place.mkdir(parents=True, exist_ok=True)
            try:
                locks.enter_context(FileLock(place / ".lock", blocking=False))
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


def clear(place: Path) -> None:
    """A pack whose results are written leaves its log alone."""
    shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
    for name in (PROGRESS, ABOUT):  # what says whose checkpoints they are goes last
        (place / name).unlink(missing_ok=True)
