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

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridlm.ablate.clusters import Ray, Slurm, package
from hybridlm.ablate.executor import Executor, Here
from hybridlm.ablate.job import Settings
from hybridlm.ablate.workers import Local
from hybridlm.errors import SpecError, UnsupportedError, did_you_mean

ALONE = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",  # memory of one step serves the next: a tenth of the time of small models
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
"""The environment of a process that has a core to itself."""
PACKAGES = {"slurm": "submitit", "ray": "ray"}
"""Of executors that need one; the extra has the name of the executor."""


KINDS = ("local", "gpu", "slurm", "ray", "here")


def check_executor(name: str) -> None:
    """SpecError: there is none such, or its options cannot be read; UnsupportedError: what it needs is not here."""
    kind, _, rest = name.partition(":")
    if kind not in KINDS or (kind == "here" and rest):
        raise SpecError(f"executor: {name!r}; it must be one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if kind in ("local", "gpu"):
        _count(name, rest, 1)
    if kind == "gpu":
        _require_gpu()
    if kind == "slurm":
        _options(name, rest)
    if kind in PACKAGES:
        package(PACKAGES[kind], kind)


def executor_of(name: str, folder: Path, settings: Settings, stop: Callable[[], bool], cores: int | None) -> Executor:
    """The executor that a user names. cores: that may be used at most. Errors: those of `check_executor`; SpecError:
    options that it has not, or a cluster that does not answer."""
    check_executor(name)
    kind, _, rest = name.partition(":")
    if kind == "local":
        count = _count(name, rest, min(cores or sys.maxsize, len(os.sched_getaffinity(0))))
        return Local(folder, replace(settings, threads=1), [ALONE] * count)
    if kind == "gpu":
        return _gpus(name, rest, folder, settings)
    if kind == "slurm":
        return Slurm(folder, replace(settings, threads=None), _options(name, rest))
    if kind == "ray":
        return Ray(folder, replace(settings, threads=1), rest or None)
    return Here(folder, settings, stop)


def _require_gpu() -> int:
    """How many there are."""
    import torch

    if not (found := torch.cuda.device_count()):
        raise UnsupportedError("executor: gpu, but torch sees no GPU here; use local")
    return found


def _gpus(name: str, rest: str, folder: Path, settings: Settings) -> Local:
    found = _require_gpu()
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
