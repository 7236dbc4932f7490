"""Packs as jobs of SLURM, by submitit, or as tasks of a Ray cluster: both see the study's folder."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridlm.ablate.executor import PATIENCE, Executor
from hybridlm.ablate.job import Outcome, Pack, Settings
from hybridlm.ablate.trial import record, run_pack
from hybridlm.errors import SpecError, UnsupportedError

ANSWER = 10.0  # seconds that a Ray cluster has to answer


class Slurm(Executor):
    """A job a pack, by submitit. What is told to stop is cancelled: it goes on from its last checkpoint."""

    slots = 1_000

    def __init__(self, folder: Path, settings: Settings, options: dict[str, Any]) -> None:
        super().__init__(folder, settings)
        submitit, cluster = package("submitit", "slurm"), options.pop("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
            self._executor.update_parameters(**{"timeout_min": 240, "cpus_per_task": 2, **options})
        except (RuntimeError, ValueError, NameError, AssertionError) as error:  # as submitit tells of each
            hint = "; slurm:cluster=local runs the jobs here" if isinstance(error, RuntimeError) else ""
            raise SpecError(f"executor: slurm: {str(error).splitlines()[0]}{hint}") from error
        if cluster != "slurm":
            self.slots = len(os.sched_getaffinity(0))  # nobody else keeps jobs waiting
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


class Ray(Executor):
    """A task a pack, on a Ray cluster that sees the study's folder."""

    slots = 1_000

    def __init__(self, folder: Path, settings: Settings, address: str | None) -> None:
        super().__init__(folder.resolve(), settings)
        self._ray = package("ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _require_answer(address or os.environ.get("RAY_ADDRESS", ""))
            try:
                self._ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ValueError, RuntimeError, ConnectionError) as error:
                raise SpecError(f"executor: ray:{address}: {str(error).splitlines()[0]}") from error
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


def _require_answer(address: str) -> None:
    """SpecError: nobody listens at host:port, for which Ray would wait minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # auto, or what Ray itself refuses
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise SpecError(f"executor: ray:{address}: no cluster answers there ({error}); start it, or use ray") from error


def package(name: str, extra: str) -> Any:
    """An optional package. UnsupportedError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(f"{name} is not installed: pip install 'hybridlm[{extra}]'") from error
