"""The tree that a pattern is parsed to, its canonical text, and a short way back from a flat list of names.

Everything here is immutable, and two patterns are equal when their trees are. The grammar is in `compose.pattern`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hybridlm.compose.strict_yaml import dump_flow

MLP_ALONE = "-"

_LABEL_LAST = re.compile(r"@[a-z_]+\Z")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer: a defined block, or an MLP alone where `name` is "-"."""

    name: str
    label: str | None = None
    override: dict[str, Any] = field(default_factory=dict, hash=False)  # read only

    length = 1

    def __str__(self) -> str:
        name = self.name if len(self.name) == 1 else f"[{self.name}]"
        return name + _suffixes(self)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """One layer: the mixers of two or more blocks side by side."""

    members: tuple[Block, ...]
    label: str | None = None
    override: dict[str, Any] = field(default_factory=dict, hash=False)  # read only

    length = 1

    def __str__(self) -> str:
        return f"<{'|'.join(map(str, self.members))}>" + _suffixes(self)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """`items`, `count` >= 2 times over."""

    items: tuple[Item, ...]
    count: int

    @property
    def length(self) -> int:
        return self.count * sum(item.length for item in self.items)

    def __str__(self) -> str:
        alone = len(self.items) == 1 and not isinstance(self.items[0], Repeat)
        text = _text(self.items)
        return f"{text}{self.count}" if alone else f"({text}){self.count}"


Place = Block | Parallel
Item = Place | Repeat


@dataclass(frozen=True)
class Pattern:
    """A stack of layers. `str(pattern)` is its canonical text."""

    items: tuple[Item, ...]

    @property
    def length(self) -> int:
        """The number of layers, by arithmetic."""
        return sum(item.length for item in self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """The block names that occur, each once, in order; an MLP alone has none."""
        return tuple(dict.fromkeys(block.name for block in _blocks(self.items) if block.name != MLP_ALONE))

    def places(self) -> tuple[Place, ...]:
        """The layers from the bottom up, one entry a layer. Repeated layers are one object."""
        return tuple(_expand(self.items))

    def map(self, change: Callable[[Block], Block]) -> Pattern:
        """The pattern with every block changed, those side by side too."""
        return Pattern(_mapped(self.items, change))

    def __str__(self) -> str:
        return _text(self.items)


def _mapped(items: Iterable[Item | Block], change: Callable[[Block], Block]) -> tuple:
    result = []
    for item in items:
        if isinstance(item, Repeat):
            item = replace(item, items=_mapped(item.items, change))
        elif isinstance(item, Parallel):
            item = replace(item, members=_mapped(item.members, change))
        else:
            item = change(item)
        result.append(item)
    return tuple(result)


def _blocks(items: Iterable[Item | Block]) -> Iterator[Block]:
    for item in items:
        if isinstance(item, Block):
            yield item
        else:
            yield from _blocks(item.members if isinstance(item, Parallel) else item.items)


def _expand(items: Iterable[Item]) -> Iterator[Place]:
    for item in items:
        if isinstance(item, Repeat):
            yield from list(_expand(item.items)) * item.count
        else:
            yield item


def _suffixes(place: Place) -> str:
    label = f"@{place.label}" if place.label else ""
    return label + (dump_flow(place.override) if place.override else "")


def _text(items: Sequence[Item]) -> str:
    """The items' texts in a row, with a space where a letter would run into a label."""
    texts = [str(item) for item in items]
    joints = (" " * bool(_LABEL_LAST.search(text) and after[0].islower()) for text, after in pairwise([*texts, "-"]))
    return "".join(text + joint for text, joint in zip(texts, joints, strict=True))


# ---------------------------------------------------------------------------------------------------------- compaction
MAX_PERIOD = 256  # longer repetitions are not looked for


def compact(names: Sequence[str]) -> str:
    """A short pattern for the blocks `names`, from the bottom up: MMMAMMMA becomes (M3A)2. "-" is an MLP alone."""
    return _text(_compact(tuple(Block(name=name) for name in names)))


def _compact(items: tuple[Block, ...]) -> tuple[Item, ...]:
    """Greedy: wherever something repeats, the period that covers most, the shortest of those, compacted in its turn."""
    result: list[Item] = []
    at = 0
    while at < len(items):
        periods = range(1, min((len(items) - at) // 2, MAX_PERIOD) + 1)
        counts = {period: _repeats(items, at, period) for period in periods if items[at] == items[at + period]}
        period = max((p for p in counts if counts[p] > 1), key=lambda p: p * counts[p], default=1)
        count, unit = counts.get(period, 1), items[at : at + period]
        repeat = Repeat(items=_compact(unit), count=count) if count > 1 else None
        if repeat is None or len(str(repeat)) > count * len(_text(unit)):  # (MA)2 is longer than MAMA
            count, unit = 1, items[at : at + 1]
        result += unit if count == 1 else [repeat]
        at += count * len(unit)
    return tuple(result)


def _repeats(items: tuple[Block, ...], at: int, period: int) -> int:
    """How often the `period` items at `at` stand there in a row."""
    count, unit = 1, items[at : at + period]
    while items[at + count * period : at + (count + 1) * period] == unit:
        count += 1
    return count
