"""Which code runs an op. The only place that knows of hardware and of optional packages.

An op offers one function a backend. `auto` takes the first offer, the others take theirs or raise. `use` sets what
`auto` means for everything below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from hybridlm.errors import SpecError, UnsupportedError, did_you_mean

BACKENDS = ("auto", "reference", "triton", "vendor")

_preferred: ContextVar[str] = ContextVar("backend", default="auto")


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Within the block, `auto` means this backend."""
    token = _preferred.set(_known(backend))
    try:
        yield
    finally:
        _preferred.reset(token)


def resolve(op: str, backend: str, offers: Mapping[str, Callable]) -> Callable:
    """The function that runs `op`. offers: what can run here, best first.

    SpecError: no such backend. UnsupportedError: it exists but does not offer this op here.
    """
    wanted = _known(backend)
    if wanted == "auto":
        wanted = _preferred.get()
    if wanted == "auto":
        return next(iter(offers.values()))
    if wanted not in offers:
        raise UnsupportedError(f"{op}: no {wanted!r} backend on this machine; here it runs on: {', '.join(offers)}")
    return offers[wanted]


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise SpecError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}.{did_you_mean(backend, BACKENDS)}")
    return backend
