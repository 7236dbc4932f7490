"""Where the attention layers stand: a depth and a count give their indices from 0, at the bottom, in order.

even            in the middle of as many equal stretches: MAMMAMAM of 8 layers and 3
middle          side by side, half-way up
first-mid-last  the bottom, the top, and the rest evenly between; one alone stands in the middle
front, end      side by side at the bottom, or at the top
late-dense      the closer together the higher up: as many below the height h as (h / depth)^2 of them
random(k)       drawn from seed k; a larger count adds to the layers of a smaller one
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from hybridlm import checks
from hybridlm.errors import SpecError, did_you_mean

Placement = Callable[[int, int], list[int]]
"""(depth, count) -> count indices in range(depth), ascending, none twice."""

_RANDOM = re.compile(r"random\(([0-9]{1,9})\)")


def even(depth: int, count: int) -> list[int]:
    """The middles of `count` equal stretches, the upper one of two."""
    return [(2 * i + 1) * depth // (2 * count) for i in range(count)]


def middle(depth: int, count: int) -> list[int]:
    """A block half-way up, the upper one of two such."""
    first = (depth - count + 1) // 2
    return list(range(first, first + count))


def first_mid_last(depth: int, count: int) -> list[int]:
    """Both ends, and what is left evenly between them."""
    if count == 1:
        return middle(depth, count)
    return [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def front(depth: int, count: int) -> list[int]:
    """From the bottom."""
    return list(range(count))


def end(depth: int, count: int) -> list[int]:
    """Up to the top."""
    return list(range(depth - count, depth))


def late_dense(depth: int, count: int) -> list[int]:
    """Heights depth sqrt((i + 1/2) / count), moved down where two would be one layer."""
    found: list[int] = []
    free = depth
    for i in reversed(range(count)):
        free = min(free - 1, int(depth * ((i + 0.5) / count) ** 0.5))
        found.append(max(free, i))
    return found[::-1]


def random(seed: int) -> Placement:
    """The placement that a seed draws: the first `count` of a permutation of the layers."""

    def drawn(depth: int, count: int) -> list[int]:
        return sorted(np.random.default_rng(seed).permutation(depth)[:count].tolist())

    return drawn


PLACEMENTS: dict[str, Placement] = {
    "even": even,
    "middle": middle,
    "first-mid-last": first_mid_last,
    "front": front,
    "end": end,
    "late-dense": late_dense,
}


def placement(name: object) -> Placement:
    """The placement of that name. SpecError: there is none, with the nearest."""
    drawn = _RANDOM.fullmatch(name) if isinstance(name, str) else None
    if drawn:
        return random(int(drawn[1]))
    if not isinstance(name, str) or name not in PLACEMENTS:
        near = did_you_mean(str(name), PLACEMENTS)
        raise SpecError(f"{name!r} is no placement; known: {', '.join(PLACEMENTS)}, random(7) for any seed.{near}")
    return PLACEMENTS[name]


def indices(name: object, depth: int, count: object) -> list[int]:
    """Where `count` layers of a stack of `depth` stand. SpecError: no such placement, or no such count."""
    return placement(name)(depth, checks.whole("count", count, low=0, high=depth))
