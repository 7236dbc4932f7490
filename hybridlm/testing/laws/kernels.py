"""Backends: what a subject ran on. That it gives what the reference gives is every other law's to see."""

from __future__ import annotations

from collections.abc import Iterator

from hybridlm.ops.backend import Seen
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import Result, holds, refused
from hybridlm.testing.subject import Subject

ANY = ("auto", "reference")


@law("C15", "the backend that is asked for runs an op of it")
def backend(s: Subject) -> Iterator[Result]:
    """And so the other laws, which all compare with the float64 reference, hold of that backend."""
    seen = s.twin().ran()  # a twin: what runs once might leave a trace that other laws look for
    for one in seen:
        if s.backend in ("auto", one.backend):
            yield holds(f"{one.op} ran on {one.backend}", True)
    if s.backend not in ANY and all(one.backend != s.backend for one in seen):
        yield refused(f"backend {s.backend}", f"no op of it ran there: {reasons(seen, s.backend)}")


def reasons(seen: list[Seen], backend: str) -> str:
    """Why each op ran elsewhere."""
    why = {one.op: dict(one.passed).get(backend, f"has no {backend} backend") for one in seen}
    said = dict.fromkeys(why.values())
    return "; ".join(f"{', '.join(op for op in why if why[op] == reason)}: {reason}" for reason in said)
