"""Spawned processes of this machine that work packs off, one after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hybridlm.ablate.executor import PATIENCE, Executor
from hybridlm.ablate.job import LOG, Outcome, Pack, Settings, pack_folder
from hybridlm.ablate.trial import record, run_pack

GRACE = 60.0  # seconds that a process has to finish its step and save


@dataclass
class _Worker:
    """A process that takes packs from a pipe, and its own environment."""

    environment: dict[str, str]
    process: Any = None
    pipe: Connection | None = None
    pack: Pack | None = field(default=None)


class Local(Executor):
    """Spawned processes. One that dies takes its pack down, which is reported, and nothing else."""

    def __init__(self, folder: Path, settings: Settings, environments: list[dict[str, str]]) -> None:
        super().__init__(folder, settings)
        self.slots = len(environments)
        self._workers = [_Worker(environment) for environment in environments]
        self._spawn = multiprocessing.get_context("spawn")

    def start(self, pack: Pack) -> None:
        worker = next(one for one in self._workers if one.pack is None)
        if worker.process is None:
            ours, theirs = self._spawn.Pipe()
            with _environment(worker.environment):
                arguments = (theirs, self.folder, self.settings)
                worker.process = self._spawn.Process(target=_serve, args=arguments, daemon=False)
                worker.process.start()
            theirs.close()
            worker.pipe = ours
        worker.pack = pack
        worker.pipe.send(pack)

    def finished(self) -> list[tuple[Pack, Outcome]]:
        busy = [worker for worker in self._workers if worker.pack is not None]
        wait([worker.pipe for worker in busy], PATIENCE)
        ended = [(worker, self._news(worker)) for worker in busy]
        found = [(worker.pack, outcome) for worker, outcome in ended if outcome is not None]
        for worker, outcome in ended:
            worker.pack = worker.pack if outcome is None else None
        return found

    def _news(self, worker: _Worker) -> Outcome | None:
        """How the worker's pack ended; None: it has not."""
        if not worker.pipe.poll():
            return None
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):  # it died
            worker.process.join()
            error = f"its process died{_how(worker.process.exitcode)}"
            worker.process = None
            return Outcome("failed", record(ChildProcessError(error), worker.pack, self.folder))

    def stop(self) -> None:
        self._end([worker for worker in self._workers if worker.process is not None])

    def close(self) -> None:
        """What is still at work then, as after a second Ctrl-C, is told to stop."""
        alive = [worker for worker in self._workers if worker.process is not None]
        for worker in alive:
            worker.pipe.close()
        self._end(alive)

    def _end(self, alive: list[_Worker]) -> None:
        """Processes save what they are at and end."""
        for worker in alive:
            worker.process.terminate()
        for worker in alive:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
            worker.process = worker.pack = None


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f" with exit code {code}"
    name = signal.Signals(-code).name
    return f" of {name}" + ("; is there enough memory?" if name == "SIGKILL" else "")


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Connection, folder: Path, settings: Settings) -> None:
    """A worker process: packs in, outcomes out, until the pipe closes or it is told to stop."""
    told, parent = [], os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the first one decides

    def stop() -> bool:
        return bool(told) or os.getppid() != parent

    while not stop():
        try:
            if not pipe.poll(PATIENCE):
                continue
            pack = pipe.recv()
        except (EOFError, OSError):
            return
        with _logged(pack_folder(folder, pack.key)):
            outcome = run_pack(pack, folder, settings, stop)
        with contextlib.suppress(OSError):  # who asked is gone
            pipe.send(outcome)


@contextlib.contextmanager
def _logged(place: Path) -> Iterator[None]:
    """What is printed within the block, by whatever library, goes to the pack's log."""
    place.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with open(place / LOG, "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
