"""Shares that a caller asks for: the level of an interval, the power of a test."""

from __future__ import annotations

from hybridlm.checks import real
from hybridlm.errors import SpecError


def level_of(value: object, field: str = "level") -> float:
    """A number strictly between 0 and 1, else SpecError."""
    share = real(field, value, 0, 1)
    if share in (0, 1):
        raise SpecError(f"{field}: {value}; it must lie between 0 and 1, as 0.95 does")
    return share
