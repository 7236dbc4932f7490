"""Running a study: every trial that has no result yet, wherever the executor takes it, and a table of how it goes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlm.ablate.executor import Executor, Together
from hybridlm.ablate.executors import executor_of
from hybridlm.ablate.job import Outcome, Pack, Settings
from hybridlm.ablate.leftover import clear_leftover
from hybridlm.ablate.progress import Board
from hybridlm.ablate.results import FORMAT, load
from hybridlm.ablate.trial import pending
from hybridlm.ablate.widening import widened
from hybridlm.compose import strict_yaml
from hybridlm.errors import DataError
from hybridlm.files import atomic_write

if TYPE_CHECKING:
    from hybridlm.ablate.study import Study, Trial

STUDY = "study.yaml"
RETRY = 2.0  # seconds until a pack that another runner holds is asked for again


@dataclass
class Ran:
    """How a run of a study ended. study: as it was in the end, with the rates that were added to its grid; failed:
    (pack, error in a line); stopped: by Ctrl-C, run it again to go on."""

    study: Study
    done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False


def run(study: Study, folder: str | Path, executor: str = "local", *, save_every: float = 60.0) -> Ran:
    """Run what is left of a study: results that are there are kept, crashed trials tried again, once.

    folder: runs/studies/NAME. executor: see executors.py. save_every: seconds between checkpoints of a pack.
    A crash is told and does not stop the rest. Ctrl-C saves, ends, and leaves everything to be gone on with. What has
    no crash is widened as the study allows, and goes on.
    """
    folder = Path(folder)
    require_folder(study, folder)
    _require_text(study)
    cores = study.budget.cores if study.budget is not None else None
    with _interrupted() as stop:
        works = executor_of(executor, folder, Settings(save_every=save_every), stop.is_set, cores)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ran, wider = Ran(study), study
            while wider is not None:
                ran.study = wider
                _write_study(wider, folder)
                this = _Run(ran, folder, works, stop)
                this.run()
                over = ran.stopped or ran.failed or not wider.widen
                wider = None if over else widened(load(wider, folder))
            if not (ran.stopped or ran.failed) and (line := clear_leftover(folder)):
                this.board.tell(line, "kept")
            return ran
        finally:
            works.close()


def require_folder(study: Study, folder: Path) -> None:
    """DataError: it holds the study of another name, whose files ours would replace, or it is no folder."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder for the results, with --out")
    if (folder / STUDY).is_file():
        held = strict_yaml.read(folder / STUDY).get("name")
        if held != study.name:
            raise DataError(
                f"{folder}: it holds the study {held!r}, and this one is {study.name!r}; give another --out"
            )


def _require_text(study: Study) -> None:
    """DataError: a text is too short for its windows. Its tokens are made, once for all processes."""
    from hybridlm.ablate.samples import data_of  # torch and Lightning

    for data in (study.data, *study.eval):
        if data.text:
            data_of(data, seed=0, batch_size=1)


class _Run:
    """One run of a study: the packs that wait, those that are worked off, and what came of the others."""

    def __init__(self, ran: Ran, folder: Path, works: Executor, stop: threading.Event) -> None:
        self.folder, self.works, self.stop, self.ran = folder, works, stop, ran
        ran.done = 0  # what is there already is counted as it is met
        self.board = Board(ran.study, folder)
        self.waiting = deque(packs_of(ran.study.runs(), works.together, works.workers))
        self.running: set[str] = set()
        self.later: list[tuple[float, Pack]] = []

    def run(self) -> None:
        with self.board:
            while self.waiting or self.running or self.later:
                if self.stop.is_set():
                    self._end()
                    break
                self._fill()
                for pack, outcome in self.works.finished() if self.running else self._idle():
                    self._take(pack, outcome)
                self.board.show(self.running)
            self.ran.stopped = self.stop.is_set()

    def _idle(self) -> list:
        """All that is left is in other runners' hands."""
        time.sleep(min(0.2, RETRY))
        return []

    def _fill(self) -> None:
        now = time.monotonic()
        self.waiting.extend(pack for due, pack in self.later if due <= now)
        self.later = [(due, pack) for due, pack in self.later if due > now]
        while self.waiting and len(self.running) < self.works.slots and not self.stop.is_set():
            pack = self.waiting.popleft()
            left, told = pending(self.folder, pack.trials)
            for line in told:
                self.board.tell(line, "damaged")
            if not left:
                self._take(pack, Outcome("done"))
                continue
            self.running.add(pack.key)
            self.board.begin(pack)
            self.works.start(pack)

    def _take(self, pack: Pack, outcome: Outcome) -> None:
        self.running.discard(pack.key)
        for line in outcome.told:
            self.board.tell(line, "damaged")
        if outcome.ended == "busy":
            self.later.append((time.monotonic() + RETRY, pack))
        elif outcome.ended == "failed":
            self.ran.failed.append((str(pack), outcome.error))
            self.board.tell(f"{pack}: {outcome.error}", "failed")
        elif outcome.ended == "done":
            self.ran.done += len(pack.trials)
        self.board.end(pack, outcome)

    def _end(self) -> None:
        self.board.tell("saving what is at work; run it again to go on", "stopped")
        self.works.stop()


def packs_of(trials: list[Trial], together: Together, workers: int = 0) -> list[Pack]:
    """Trials of one arm, and of one seed if `together` says so, as packs; the costliest first, so that none is late."""
    groups: dict[tuple, list[Trial]] = {}
    for trial in trials:
        shape = trial.arm.spec.fingerprint
        groups.setdefault((trial.arm.name, shape, trial.seed if together == "seed" else None), []).append(trial)
    packs = [Pack(tuple(group), workers) for group in groups.values()]
    return sorted(packs, key=lambda pack: -pack.trials[0].arm.cost.flops_train * len(pack.trials))


def _write_study(study: Study, folder: Path) -> None:
    """study.yaml as it was read, and what its arms are and cost."""
    atomic_write(folder / STUDY, study.to_yaml().encode())
    arms = [
        {
            "name": arm.name,
            "coordinates": dict(arm.coordinates),
            "residual": arm.residual,
            "cost": asdict(arm.cost),
            "spec": arm.spec.to_dict(),
        }
        for arm in study.arms
    ]
    atomic_write(folder / "arms.json", json.dumps({"format": FORMAT, "arms": arms}, indent=1).encode())


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Within the block, the first Ctrl-C or SIGTERM sets the event; a second one stops at once."""
    stop, former = threading.Event(), {}

    def receive(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        former = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
