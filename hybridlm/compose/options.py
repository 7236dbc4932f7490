"""What a block says of itself besides its mixer and its MLP. Words and numbers only; `compose.block` acts on them.

blocks:
  A: {mixer: attention, norms: sandwich}
  Z: {mixer: attention, mlp: geglu, input: concat_embeddings, output: next_mixer, low_rank: 8}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hybridlm import checks
from hybridlm.compose.spec import NORM_PLACES

INPUTS = ("residual", "concat_embeddings")
OUTPUTS = ("residual", "next_mixer")


@dataclass(frozen=True)
class Ranks:
    """Rank of a place's correction of its shared weights: of its mixers', and of its MLP's. 0: none."""

    mixer: int = 0
    mlp: int = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a block does beyond x + mixer(norm(x)), then x + mlp(norm(x)).

    norms:    pre, or sandwich: a second norm on what the mixer and the MLP give, before it is added.
    input:    residual, or concat_embeddings: the mixer reads [x, e], of width 2 d_model, under one norm; e is what
              entered the stack. It still writes d_model.
    output:   residual, or next_mixer: mixer and MLP in a row, without residuals, then a projection; the result is added
              not to the stream but to what the next layer's mixer reads.
    low_rank: of a place with shared weights: rank of its own correction, W + B A, of every linear layer that reads; a
              number, or {mixer: rank, mlp: rank}.
    """

    norms: str = "pre"
    input: str = "residual"
    output: str = "residual"
    low_rank: int | Ranks = 0

    def saying(self, given: Mapping[str, Any], path: str) -> Options:
        """These options, but for those that `given` names; its other keys are passed over."""
        read = {name: _READERS[name](f"{path}{name}", given[name]) for name in WORDS if name in given}
        return replace(self, **read)

    def said(self, default: Options) -> dict[str, Any]:
        """The plain mapping of what differs from a block that says nothing."""
        plain = {name: getattr(self, name) for name in WORDS if getattr(self, name) != getattr(default, name)}
        if isinstance(self.low_rank, Ranks) and plain.get("low_rank"):
            plain["low_rank"] = {"mixer": self.low_rank.mixer, "mlp": self.low_rank.mlp}
        return plain

    def reads(self, d_model: int) -> int:
        """Width of what the mixer reads."""
        return 2 * d_model if self.input == "concat_embeddings" else d_model


WORDS = tuple(field.name for field in fields(Options))


def without_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without the words of Options."""
    return {name: value for name, value in given.items() if name not in WORDS}


def _low_rank(path: str, given: Any) -> int | Ranks:
    if not isinstance(given, Mapping):
        return checks.whole(path, given, low=0)
    checks.known(given, [field.name for field in fields(Ranks)], f"{path}.")
    ranks = Ranks(**{name: checks.whole(f"{path}.{name}", rank, low=0) for name, rank in given.items()})
    return ranks if ranks != Ranks() else 0


_READERS = {
    "norms": lambda path, given: checks.choice(path, given, NORM_PLACES),
    "input": lambda path, given: checks.choice(path, given, INPUTS),
    "output": lambda path, given: checks.choice(path, given, OUTPUTS),
    "low_rank": _low_rank,
}
