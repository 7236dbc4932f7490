"""Run the laws on a mixer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, did_you_mean
from hybridlm.layers.mixer import Mixer
from hybridlm.testing.laws import LAWS, Law
from hybridlm.testing.result import Result
from hybridlm.testing.subject import Paper, Solo, Subject
from hybridlm.testing.whole import Whole

SHOWN = 40  # broken cases in a message

MAY_REFUSE = ("C9",)
"""Laws that a mixer may answer with UnsupportedError: no recurrence can be rolled back."""


def check_mixer(
    name: str | type[Mixer],
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    laws: Iterable[str] | None = None,
    config: Any = None,
    d_model: int = 32,
    tokens: int = 70,
    device: torch.device | str = "cpu",
    oracle: Paper | None = None,
) -> list[Result]:
    """Hold one mixer to the laws. What goes wrong becomes a Result; only bad arguments raise.

    name:    a registered name, or a Mixer class.
    laws:    numbers such as ["C2", "C5"]; all by default.
    config:  an instance of its Config or a mapping of its fields; by default small sizes, so that every window and
             chunk ends inside the `tokens` of the scene.
    oracle:  (mixer in float64, x (t, d)) -> (y (t, d), {state field: tensor}), written from the paper; C1 then holds
             the mixer's own step by step run to it.
    """
    sizes = {"config": config, "d_model": d_model, "tokens": tokens}
    return prove(Solo(name, dtype=dtype, backend=backend, device=device, paper=oracle, **sizes), laws)


def check_model(
    model: HybridLM | ModelSpec | Mapping[str, Any] | str | Path,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    laws: Iterable[str] | None = None,
    tokens: int = 24,
) -> list[Result]:
    """Hold a model, or the model that a spec, a YAML file or keywords describe, to the laws. The model is not changed.

    Its limit in float32 is 2e-6 sqrt(layers / 4), and at least 2e-6. Build it small: each law runs it many times.
    """
    return prove(Whole(model, dtype=dtype, backend=backend, tokens=tokens), laws)


def prove(subject: Subject, laws: Iterable[str] | None = None) -> list[Result]:
    """The results of the given laws, or of all that speak of such a subject.

    Where no op of it runs on the backend that was asked for, that alone is said, as a refusal of law C15: the reference
    would answer for it, and keep every law.
    """
    present = LAWS["C15"].check(subject) if subject.backend not in ("auto", "reference") else []
    if any(result.verdict == "refused" for result in present):
        return present
    return [result for entry in chosen(laws) for result in entry.check(subject)]


def chosen(laws: Iterable[str] | None) -> list[Law]:
    """Laws by number, in the order of the numbers; SpecError for one that does not exist."""
    wanted = set(LAWS if laws is None else laws)
    for number in wanted - set(LAWS):
        raise SpecError(f"unknown law {number!r}; one of {', '.join(numbers())}.{did_you_mean(number, LAWS)}")
    return [LAWS[number] for number in numbers() if number in wanted]


def numbers() -> list[str]:
    """C1, C2, ... in order."""
    return sorted(LAWS, key=lambda number: int(number[1:]))


def violations(results: Iterable[Result], may_refuse: Iterable[str] = MAY_REFUSE) -> list[Result]:
    """The failed ones, and those refused that may not be."""
    return [r for r in results if r.verdict == "failed" or (r.verdict == "refused" and r.law not in may_refuse)]


def assert_laws(
    name: str | type[Mixer], backend: str = "auto", dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    """`check_mixer` for a test: AssertionError with the broken cases. Options as there."""
    require(check_mixer(name, backend, dtype, **options))


def require(results: Iterable[Result]) -> None:
    """AssertionError that lists every violation."""
    bad = violations(results)
    if bad:
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise AssertionError("\n  ".join([f"{len(bad)} cases break a law:", *map(str, bad[:SHOWN]), *more]))
