"""Other packages that build the same architecture. None of them is needed.

A peer is a module with

    missing()                                    why it cannot take part, or None
    build(architecture, weights, device, dtype)  a `Peer` with hybridlm's weights, so that it can be checked
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor, nn

KNOWN = ("mamba_ssm", "transformers", "transformers_shipped", "fla")
FULL = {"transformers_shipped"}
"""Those that fill a memory in training."""
SUPPORTED = {"mamba2", "attention"}


@dataclass
class Peer:
    """A model of another package.

    loss:     (ids, targets) -> what it trains on, its usual way. logits: ids -> (b, t, v).
    prefill:  ids -> (b, v) logits of the last token, its cache filled.
    generate: (ids, new) -> (b, t + new) by greedy choice, its fastest way.
    label:    the path that it is on. notes: in what it differs.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    prefill: Callable[[Tensor], Tensor]
    generate: Callable[[Tensor, int], Tensor]
    label: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Entries, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def peer(name: str) -> ModuleType:
    """The module of a peer."""
    return importlib.import_module(f"benchmarks.peers.{name}_peer")


def require_layers(who: str, types: list[str]) -> None:
    """NotImplementedError unless a stack is of Mamba-2 and attention alone, one mixer a layer."""
    if other := sorted(set(types) - SUPPORTED):
        raise NotImplementedError(f"{who} is asked for Mamba-2 and attention only, not for {', '.join(other)}")


def require_same_size(who: str, theirs: int, ours: int) -> None:
    """AssertionError if the numbers of parameters are more than 2% apart."""
    assert abs(theirs - ours) <= 0.02 * ours, f"{who} has {theirs:,} parameters, hybridlm {ours:,}: more than 2% apart"
