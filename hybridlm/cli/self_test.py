"""The self-test of `hybridlm doctor`: each op on this device, by the backend that it gets, against the reference."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlm.ops.draw import Example

SECONDS = 1.0
"""A second for each op: no case is begun after it."""


def self_test(device: str, dtype: str, ops: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One row an op, of those named or of all: {op, backend, cases, strain, case, milliseconds, passed, detail}.

    strain: the worst error over its limit, outputs, final state and gradients; over 1 is a failure. case: where that
    was. milliseconds: of one call, forward, of the first case. Limits are those of law C15.
    """
    from hybridlm.ops.examples import OPS

    return [_test(op, device, dtype) for op in OPS if ops is None or op in set(ops)]


def _test(op: str, device: str, dtype: str) -> dict[str, Any]:
    import torch

    from hybridlm.ops.draw import SMALL, TINY
    from hybridlm.ops.examples import examples

    row: dict[str, Any] = {"op": op, "backend": "?", "cases": 0, "strain": 0.0, "case": "", "milliseconds": None}
    start, sizes = time.perf_counter(), TINY if device == "cpu" else SMALL
    try:
        for example in examples(op, sizes, device=device, dtype=getattr(torch, dtype)):
            if time.perf_counter() - start > SECONDS:
                break
            _take(row, example, device)
    except Exception as error:  # whatever a kernel raises is what the reader came to know
        said = (str(error).strip() or "it says no more").splitlines()[0][:200]
        return row | {"passed": False, "detail": f"{type(error).__name__}: {said}"}
    return row | {"passed": row["strain"] <= 1, "detail": ""}


def _take(row: dict[str, Any], example: Example, device: str) -> None:
    """Enter one case into the row."""
    from hybridlm.ops.agreement import agreement
    from hybridlm.ops.backend import trace

    found = list(agreement(example, "auto"))
    if not row["cases"]:
        with trace() as seen:
            row["milliseconds"] = _milliseconds(example, device)
        row["backend"] = seen[0].backend
    row["cases"] += 1
    worst = max(found, key=lambda one: one.strain)
    if worst.strain >= row["strain"]:
        row |= {"strain": worst.strain, "case": f"{example.case}: {worst.name}"}


def _milliseconds(example: Example, device: str) -> float:
    """Of one call without gradients, after one to warm up."""
    import torch

    times = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            example("auto")
            if device != "cpu":
                torch.accelerator.synchronize(device)
            times.append(time.perf_counter() - start)
    return 1e3 * times[-1]
