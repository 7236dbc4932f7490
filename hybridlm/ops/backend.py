"""Which code runs an op. The only place that knows of hardware and of optional packages.

An op offers one function a backend. `auto` takes the first offer, the others take theirs or raise. `use` sets what
`auto` means for everything below it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from hybridlm.errors import SpecError, UnsupportedError, did_you_mean

BACKENDS = ("auto", "reference", "triton", "vendor")

_preferred: str = "auto"
_seen: list[tuple[str, str]] | None = None


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Within the block, `auto` means this backend."""
    global _preferred  # a context variable would be cleaner, but torch.compile cannot trace one
    before, _preferred = _preferred, _known(backend)
    try:
        yield
    finally:
        _preferred = before


@contextmanager
def trace() -> Iterator[list[tuple[str, str]]]:
    """Within the block, the list that is given fills with (op, backend) of every op that runs."""
    global _seen
    before, _seen = _seen, []
    try:
        yield _seen
    finally:
        _seen = before


def devices() -> list[tuple[str, str]]:
    """Name and description of what torch can compute on, the CPU first."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return [("cpu", f"{threads} thread{'s' * (threads > 1)}")] + [
        (f"cuda:{i}", f"{gpu.name}, {gpu.total_memory >> 30} GiB, compute capability {gpu.major}.{gpu.minor}")
        for i, gpu in enumerate(gpus)
    ]


def memory(device: torch.device | str) -> int | None:
    """Bytes of memory that the device has in all; None where that is not known."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def resolve(op: str, backend: str, offers: Mapping[str, Callable]) -> Callable:
    """The function that runs `op`. offers: what can run here, best first.

    SpecError: no such backend. UnsupportedError: it exists but does not offer this op here.
    """
    wanted = _known(backend)
    if wanted == "auto":
        wanted = _preferred
    if wanted == "auto":
        wanted = next(iter(offers))
    if wanted not in offers:
        raise UnsupportedError(f"{op}: no {wanted!r} backend on this machine; here it runs on: {', '.join(offers)}")
    if _seen is not None:
        _seen.append((op, wanted))
    return offers[wanted]


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise SpecError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}.{did_you_mean(backend, BACKENDS)}")
    return backend
