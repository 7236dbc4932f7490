"""What the kit found: one Result a case, and how an error is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}
"""The most error, RMS over RMS, of a mixer in a dtype that is meant to be exact."""

FLOOR = {torch.bfloat16: 1.66e-3, torch.float16: 2.1e-4}
"""The error of rounding once to a dtype, as measured on normally distributed numbers."""

WORST = 10
"""A single token may be this many times the limit off, a global RMS being blind to one bad token."""

Verdict = Literal["passed", "refused", "failed"]


@dataclass(frozen=True)
class Result:
    """One case of one law.

    error: RMS of the error over RMS of the reference. worst: the same of the worst single token (of a state: row).
    limit: what error may be; worst may be WORST times as much. 0 where bits must be equal or a fact must hold.
    verdict: passed, failed, or refused (the part raised UnsupportedError). detail: what went wrong, in words.
    """

    law: str
    case: str
    error: float
    worst: float
    limit: float
    verdict: Verdict
    detail: str = ""

    def __str__(self) -> str:
        numbers = f"error {self.error:.2e}, worst {self.worst:.2e}, limit {self.limit:.2e}" if self.limit else ""
        return f"{self.law} {self.case}: {self.verdict}. {numbers} {self.detail}".rstrip()

    @property
    def strain(self) -> float:
        """How much of the limit was used: over 1 is a failure."""
        used = max(self.error, self.worst / WORST)
        return used / self.limit if self.limit else (torch.inf if used else 0.0)


def measured(case: str, got: Tensor, want: Tensor, limit: float) -> Result:
    """got against want (n, ...): n tokens, or rows of a state. The reference must not be zero."""
    if not want.abs().max() > 0:
        return Result("", case, torch.inf, torch.inf, limit, "failed", "the reference is zero: nothing was compared")
    error, worst = distance(got, want)
    passed = error <= limit and worst <= WORST * limit
    return Result("", case, error, worst, limit, "passed" if passed else "failed")


def distance(got: Tensor, want: Tensor) -> tuple[float, float]:
    """(RMS of the error, RMS of the error of the worst of n), both over the RMS of want (n, ...).

    A NaN counts as infinitely wrong. Where want is zero throughout, the error is not divided. Of no numbers it is 0:
    the state of a convolution that sees one token holds none.
    """
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if want.numel() == 0:
        return 0.0, 0.0
    square = (got.detach().double() - want.double()).nan_to_num(torch.inf).square().flatten(1)
    scale = want.double().square().mean().sqrt().item() or 1.0
    return square.mean().sqrt().item() / scale, square.mean(dim=1).max().sqrt().item() / scale


def same(case: str, got: Tensor, want: Tensor, detail: str = "") -> Result:
    """Bit for bit."""
    if torch.equal(got, want):
        return Result("", case, 0.0, 0.0, 0.0, "passed")
    off = (got.double() - want.double()).abs().max().item() if got.shape == want.shape else torch.inf
    return Result("", case, off, off, 0.0, "failed", detail or "not bit for bit the same")


def holds(case: str, fact: bool, detail: str = "") -> Result:
    """A fact that is true or false."""
    return Result("", case, 0.0, 0.0, 0.0, "passed") if fact else broken(case, detail)


def broken(case: str, detail: str) -> Result:
    """A failure without a number."""
    return Result("", case, torch.inf, torch.inf, 0.0, "failed", detail)


def refused(case: str, detail: str) -> Result:
    """The part raised UnsupportedError."""
    return Result("", case, 0.0, 0.0, 0.0, "refused", detail)


def raises(case: str, error: type[Exception], action: Callable[[], object]) -> Result:
    """The action must raise just this error."""
    try:
        action()
    except error:
        return holds(case, True)
    except Exception as other:
        return broken(case, f"raised {other!r} instead of {error.__name__}")
    return broken(case, f"did not raise {error.__name__}")
