"""Checks of single values. Each raises SpecError with field, value and rule, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybridlm.errors import SpecError, did_you_mean, nearest

LARGEST = 1 << 24  # no width, count or size of a layer is larger than 16.8 million


def whole(field: str, value: object, low: int = 1, high: int = LARGEST) -> int:
    """An integer in [low, high]; True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{field}: {value!r} is not an integer; it must be one from {low} to {high}")
    if not low <= value <= high:
        raise SpecError(f"{field}: {value} is out of range; it must be an integer from {low} to {high}")
    return value


def paired(field: str, value: object) -> int:
    """A number of states, even, as they come in conjugate couples."""
    states = whole(field, value, low=2, high=4096)
    if states % 2:
        raise SpecError(f"{field}: {states} is odd; states come in couples: use {states - 1} or {states + 1}")
    return states


def integer(field: str, value: object) -> int:
    """An integer of any size; True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{field}: {value!r} is not an integer")
    return value


def real(field: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    number = float("nan") if isinstance(value, bool) or not isinstance(value, int | float) else _float(value)
    if not math.isfinite(number):
        raise SpecError(f"{field}: {value!r} is not a finite number; it must be one from {low:g} to {high:g}")
    if not low <= value <= high:
        raise SpecError(f"{field}: {value} is out of range; it must be a number from {low:g} to {high:g}")
    return float(value)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def interval(
    low_field: str, low: object, high_field: str, high: object, least: float, most: float
) -> tuple[float, float]:
    """Two finite numbers in [least, most], the first not greater than the second."""
    low, high = real(low_field, low, least, most), real(high_field, high, least, most)
    if low > high:
        raise SpecError(f"{low_field}: {low} is greater than {high_field} = {high}; swap them")
    return low, high


def flag(field: str, value: object) -> bool:
    """True or False, nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise SpecError(f"{field}: {value!r}; it must be true or false")
    return value


def choice(field: str, value: object, allowed: Iterable[str]) -> str:
    """One of the allowed names."""
    allowed = list(allowed)
    if value not in allowed:
        raise SpecError(
            f"{field}: {value!r}; it must be one of {', '.join(allowed)}.{did_you_mean(str(value), allowed)}"
        )
    return str(value)


def known(given: Any, names: Iterable[str], path: str = "") -> None:
    """A mapping whose keys are all among the names; path: what stands before them, with its dot."""
    names = list(names)
    if not isinstance(given, Mapping):
        raise SpecError(
            f"{path.rstrip('.') or 'spec'}: {given!r}; it must be a mapping with keys of {', '.join(names)}"
        )
    for key in given:
        if key not in names:
            near = nearest(str(key), names)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(names) or 'none'}"
            raise SpecError(f"{path}{key}: unknown field; {hint}")


def divides(field: str, value: int, total_field: str, total: int) -> None:
    """value divides total, or the error names the nearest values that do."""
    if total % value:
        near = nearest_divisors(total, value)
        raise SpecError(f"{field}: {value} does not divide {total_field} = {total}; use {near}")


def nearest_divisors(total: int, value: int) -> str:
    """The divisors of total next to value, as text: `2 or 4`, or the one that there is."""
    low = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
    divisors = sorted({*low, *(total // n for n in low)})
    below, above = [n for n in divisors if n < value][-1:], [n for n in divisors if n > value][:1]
    return " or ".join(map(str, below + above))


def factor(field: str, value: object, width_field: str, width: int, high: int = 64) -> int | float:
    """A number with a whole product with `width`, from 1 / width to high; an int if it is whole itself."""
    number = real(field, value, 0, high)
    product = number * width
    if round(product) < 1 or abs(product - round(product)) > 1e-9 * product:
        below, above = math.floor(product), math.floor(product) + 1
        near = " or ".join(f"{whole / width!r}".removesuffix(".0") for whole in (below, above) if whole)
        raise SpecError(f"{field}: {value!r} times {width_field} = {width} is no whole number from 1 up; use {near}")
    return int(number) if number.is_integer() else number


def distinct(field: str, values: object, allowed: Sequence[str]) -> tuple[str, ...]:
    """Some of the allowed names, each once, in their own order."""
    if not isinstance(values, list | tuple):
        raise SpecError(f"{field}: {values!r}; it must be a list of {', '.join(allowed)}")
    given = [choice(f"{field}.{i}", value, allowed) for i, value in enumerate(values)]
    for i, name in enumerate(given):
        if name in given[:i]:
            left = [other for other in allowed if other not in given]
            hint = f"; {left[0]!r} is missing" if left else ""
            raise SpecError(f"{field}.{i}: {name!r} is there already; each of {', '.join(allowed)} stands once{hint}")
    return tuple(name for name in allowed if name in given)


def largest_divisor(total: int, limit: int) -> int:
    """The largest divisor of total that is at most limit."""
    return next(n for n in range(min(limit, total), 0, -1) if total % n == 0)


def shared_among_heads(d_model: int, heads: object, head_dim: object) -> tuple[int, int]:
    """heads and head_dim; None: the most heads of equal width up to d_model / 64, and that width."""
    heads = largest_divisor(d_model, max(1, d_model // 64)) if heads is None else whole("heads", heads)
    if head_dim is None and d_model % heads:
        near = nearest_divisors(d_model, heads)
        raise SpecError(f"heads: {heads} does not divide d_model = {d_model}; use {near}, or give head_dim as well")
    return heads, whole("head_dim", d_model // heads if head_dim is None else head_dim)


def inner_heads(d_model: int, expand: object, head_dim: object, n_groups: object) -> tuple[float, int, int]:
    """expand, head_dim and n_groups of heads that make up an inner stream of expand * d_model channels, checked.

    head_dim: by default the largest divisor up to 64.
    """
    expand = factor("expand", expand, "d_model", d_model)
    d_inner = round(expand * d_model)
    head_dim = whole("head_dim", largest_divisor(d_inner, 64) if head_dim is None else head_dim)
    divides("head_dim", head_dim, "expand * d_model", d_inner)
    n_groups = whole("n_groups", n_groups)
    divides("n_groups", n_groups, "heads = expand * d_model / head_dim", d_inner // head_dim)
    return expand, head_dim, n_groups
