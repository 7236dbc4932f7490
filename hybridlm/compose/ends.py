"""The two ends of a stack, as a spec names them: what goes in, and what comes out.

    embed: tokens                                       # ids (b, t), a row of a table each
    embed: {type: linear, channels: 3}                  # signals (b, t, 3), a linear layer each step
    head:  lm                                           # logits of the next token
    head:  {type: classify, classes: 10, pool: mean}    # logits of classes, of the whole row
    head:  {type: regress, outputs: 2, pool: none}      # numbers, at every step
    head:  {type: recover, classes: 16}                 # what stood at every step, from the row's last vector alone

`Tokens` and `LM` are the defaults, and a spec does not mention them. No torch here; `readout` computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hybridlm import checks
from hybridlm.errors import SpecError

POOLS = ("mean", "last", "none")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids: each is a row of a table of vocab_size."""

    type: ClassVar[str] = "tokens"
    channels: ClassVar[None] = None


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Numbers instead of tokens: a linear layer maps the channels of each step to d_model.

    channels: numbers a step.
    """

    type: ClassVar[str] = "linear"
    channels: int

    def __post_init__(self) -> None:
        checks.whole("embed.channels", self.channels)


@dataclass(frozen=True, kw_only=True)
class LM:
    """The next token: logits of vocab_size at every step, trained by cross entropy."""

    type: ClassVar[str] = "lm"
    pool: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class Classify:
    """One of several classes: their logits, trained by cross entropy.

    classes: how many there are.
    pool:    mean or last: one answer a row, of the mean over its steps or of its last step; none: one at every step.
    """

    type: ClassVar[str] = "classify"
    classes: int
    pool: str = "mean"

    def __post_init__(self) -> None:
        checks.whole("head.classes", self.classes, low=2)
        checks.choice("head.pool", self.pool, POOLS)

    @property
    def outputs(self) -> int:
        """Numbers in an answer."""
        return self.classes


@dataclass(frozen=True, kw_only=True)
class Regress:
    """Numbers, trained by their mean squared error.

    outputs: numbers in an answer.
    pool:    none: one answer at every step; mean or last: one a row, of the mean over its steps or of its last step.
    """

    type: ClassVar[str] = "regress"
    outputs: int
    pool: str = "none"

    def __post_init__(self) -> None:
        checks.whole("head.outputs", self.outputs)
        checks.choice("head.pool", self.pool, POOLS)


@dataclass(frozen=True, kw_only=True)
class Recover:
    """What stood at every step, all of it from the row's last vector: logits of classes, trained by cross entropy.

    classes: how many there are.
    """

    type: ClassVar[str] = "recover"
    pool: ClassVar[str] = "none"
    classes: int

    def __post_init__(self) -> None:
        checks.whole("head.classes", self.classes, low=2)

    @property
    def outputs(self) -> int:
        """Numbers in an answer."""
        return self.classes


Embed = Tokens | Linear
Head = LM | Classify | Regress | Recover
EMBEDS: dict[str, type[Embed]] = {end.type: end for end in (Tokens, Linear)}
HEADS: dict[str, type[Head]] = {end.type: end for end in (LM, Classify, Regress, Recover)}


def read_end(key: str, given: Any, kinds: Mapping[str, type]) -> Any:
    """An end from its name or from {type: name, field: value, ...}. SpecError: path, value, and what is allowed."""
    path, given = (key, {"type": given}) if isinstance(given, str) else (f"{key}.type", given)
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise SpecError(f"{key}: {given!r}; it must be {', '.join(kinds)}, or {{type: one of these, ...}}")
    cls = kinds[checks.choice(path, given["type"], kinds)]
    names = [field.name for field in dataclasses.fields(cls)]
    checks.known({name: value for name, value in given.items() if name != "type"}, names, f"{key}.")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise SpecError(f"{key}.{field.name}: missing; write {key}: {{type: {cls.type}, {field.name}: 10}}, say")
    return cls(**{name: given[name] for name in names if name in given})


def plain(end: Embed | Head) -> str | dict[str, Any]:
    """What a spec says of an end: its name, or a mapping with every field."""
    fields = dataclasses.asdict(end)
    return {"type": end.type, **fields} if fields else end.type
