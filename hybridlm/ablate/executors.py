"""Where packs are worked off: here, in processes of this machine, one a GPU, as jobs of SLURM, or on a Ray cluster.

Every executor calls the same function with the same packs, which write into the same folders; it changes no number.

    here                  in this process, one pack after another
    local, local:4        spawned processes, a thread each; by default as many as there are cores
    gpu, gpu:2            one process a GPU
    slurm, slurm:KEY=VALUE,...   jobs, by submitit, with its parameters, such as slurm:timeout_min=60,gpus_per_node=1;
                          slurm:cluster=local runs them on this machine
    ray, ray:ADDRESS      tasks of the cluster at RAY_ADDRESS, or of one that is started here
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from hybridlm.ablate.trial import LOG, Outcome, Pack, Settings, pack_folder, record, run_pack
from hybridlm.errors import SpecError, UnsupportedError, did_you_mean

PATIENCE = 0.2  # seconds that `finished` waits for news
GRACE = 60.0  # seconds that a process has to finish its step and save
Together = Literal["seed", "arm"]
"""What makes a pack: the learning rates of an arm and a seed, which share their samples; or all trials of an arm."""


class Executor(ABC):
    """Works packs off, up to `slots` at a time.

    together: how trials are packed. workers: of the data of a pack.
    """

    slots: int
    together: Together = "seed"
    workers: int = 0

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings

    @abstractmethod
    def start(self, pack: Pack) -> None:
        """Begin to work a pack off."""

    @abstractmethod
    def finished(self) -> list[tuple[Pack, Outcome]]:
        """The packs that have ended since; waits a moment if none has."""

    @abstractmethod
    def stop(self) -> None:
        """Tell every pack to save and end, and wait for it."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was held."""


# ---------------------------------------------------------------------------------------------------------------- here
class Here(Executor):
    """In this process: what a debugger wants. stop: asked after each step."""

    slots = 1

    def __init__(self, folder: Path, settings: Settings, stop: Callable[[], bool]) -> None:
        super().__init__(folder, settings)
        self._stop, self._ended = stop, []

    def start(self, pack: Pack) -> None:
        self._ended.append((pack, run_pack(pack, self.folder, self.settings, self._stop)))

    def finished(self) -> list[tuple[Pack, Outcome]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """A pack that is asked after each step has ended by now."""

    def close(self) -> None:
        """Nothing is held."""


# ----------------------------------------------------------------------------------------------------------- processes
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
        alive = [worker for worker in self._workers if worker.process is not None]
        for worker in alive:
            worker.process.terminate()
        for worker in alive:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
            worker.process = worker.pack = None

    def close(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.pipe.close()
                worker.process.join(GRACE)


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


# --------------------------------------------------------------------------------------------------------------- SLURM
class Slurm(Executor):
    """A job a pack, by submitit. What is told to stop is cancelled: it goes on from its last checkpoint."""

    slots = 1_000

    def __init__(self, folder: Path, settings: Settings, options: dict[str, Any]) -> None:
        super().__init__(folder, settings)
        submitit = _package("submitit", "slurm")
        self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=options.pop("cluster", None))
        self._executor.update_parameters(**{"timeout_min": 240, "cpus_per_task": 2, **options})
        if options.get("gpus_per_node"):
            self.together, self.settings = "arm", replace(settings, device="cuda", threads=None)
        self._jobs: list[tuple[Pack, Any]] = []

    def start(self, pack: Pack) -> None:
        self._jobs.append((pack, self._executor.submit(run_pack, pack, self.folder, self.settings)))

    def finished(self) -> list[tuple[Pack, Outcome]]:
        over = [(pack, job) for pack, job in self._jobs if job.done()]
        self._jobs = [pair for pair in self._jobs if pair not in over]
        if not over:
            time.sleep(PATIENCE)
        return [(pack, self._outcome(pack, job)) for pack, job in over]

    def _outcome(self, pack: Pack, job: Any) -> Outcome:
        try:
            return job.result()
        except Exception as error:  # whatever became of the job
            return Outcome("failed", record(error, pack, self.folder))

    def stop(self) -> None:
        for _, job in self._jobs:
            job.cancel()
        for _, job in self._jobs:
            with contextlib.suppress(Exception):
                job.wait()
        self._jobs = []

    def close(self) -> None:
        """Jobs are the cluster's."""


# ----------------------------------------------------------------------------------------------------------------- Ray
class Ray(Executor):
    """A task a pack, on a Ray cluster that sees the study's folder."""

    slots = 1_000

    def __init__(self, folder: Path, settings: Settings, address: str | None) -> None:
        super().__init__(folder.resolve(), settings)
        self._ray = _package("ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._ray.init(address=address, log_to_driver=False, include_dashboard=False)
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if gpus:
            self.together, self.settings = "arm", replace(settings, device="cuda", threads=None)
        self._task = self._ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(run_pack)
        self._running: dict[Any, Pack] = {}

    def start(self, pack: Pack) -> None:
        self._running[self._task.remote(pack, self.folder, self.settings)] = pack

    def finished(self) -> list[tuple[Pack, Outcome]]:
        over, _ = self._ray.wait(list(self._running), timeout=PATIENCE)
        return [(pack, self._outcome(pack, one)) for one in over for pack in (self._running.pop(one),)]

    def _outcome(self, pack: Pack, task: Any) -> Outcome:
        try:
            return self._ray.get(task)
        except Exception as error:  # whatever became of the task
            return Outcome("failed", record(error, pack, self.folder))

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running = {}

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()


# -------------------------------------------------------------------------------------------------------------- choice
def executor_of(name: str, folder: Path, settings: Settings, stop: Callable[[], bool], cores: int | None) -> Executor:
    """The executor that a user names. SpecError: none such, or options that it has not; UnsupportedError: a package or
    a device that it needs is missing. cores: that may be used at most."""
    kind, _, rest = name.partition(":")
    if kind == "here" and not rest:
        return Here(folder, settings, stop)
    if kind == "local":
        count = _count(name, rest, min(cores or sys.maxsize, len(os.sched_getaffinity(0))))
        one = {"OMP_NUM_THREADS": "1"}
        return Local(folder, replace(settings, threads=1), [one] * count)
    if kind == "gpu":
        return _gpus(name, rest, folder, settings)
    if kind == "slurm":
        return Slurm(folder, replace(settings, threads=None), _options(name, rest))
    if kind == "ray":
        return Ray(folder, replace(settings, threads=1), rest or None)
    kinds = ("local", "gpu", "slurm", "ray", "here")
    raise SpecError(f"executor: {name!r}; it must be one of {', '.join(kinds)}.{did_you_mean(kind, kinds)}")


def _gpus(name: str, rest: str, folder: Path, settings: Settings) -> Local:
    import torch

    found = torch.cuda.device_count()
    if not found:
        raise UnsupportedError("executor: gpu, but torch sees no GPU here; use local")
    count = _count(name, rest, found)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(found)))).split(",")
    places = [{"CUDA_VISIBLE_DEVICES": visible[k % found]} for k in range(count)]
    local = Local(folder, replace(settings, device="cuda", threads=None), places)
    local.together, local.workers = "arm", min(4, max(1, len(os.sched_getaffinity(0)) // count - 1))
    return local


def _count(name: str, text: str, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise SpecError(f"executor: {name!r}; after the colon comes a number of processes from 1 to 1024")
    return int(text)


def _options(name: str, text: str) -> dict[str, Any]:
    """ "a=1,b=x" -> {"a": 1, "b": "x"}."""
    pairs = [word.partition("=") for word in text.split(",") if word]
    if bad := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise SpecError(f"executor: {name!r}; {bad[0]!r} is no KEY=VALUE, such as timeout_min=60")
    return {key: int(value) if value.isascii() and value.isdigit() else value for key, _, value in pairs}


def _package(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(f"{name} is not installed: pip install 'hybridlm[{extra}]'") from error
