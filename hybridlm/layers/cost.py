"""What a layer costs, as formulas: parameters, FLOPs of a call, bytes of state. Nothing here allocates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by kind.

    matmul: 2 m n k of every matrix product that the reference backend does.
    scan:   multiplications and additions of elementwise recurrences.
    fft:    5 N log2 N of every complex transform of length N, half of it for a real one.
    """

    matmul: float = 0
    scan: float = 0
    fft: float = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.matmul + other.matmul, self.scan + other.scan, self.fft + other.fft)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.matmul * factor, self.scan * factor, self.fft * factor)

    @property
    def total(self) -> float:
        """All kinds together."""
        return self.matmul + self.scan + self.fft


@dataclass(frozen=True)
class StateBytes:
    """Bytes of state by kind. kv grows with the context up to a bound, if any; ssm (with convolutions) never does."""

    kv: int = 0
    ssm: int = 0

    def __add__(self, other: StateBytes) -> StateBytes:
        return StateBytes(self.kv + other.kv, self.ssm + other.ssm)

    @property
    def total(self) -> int:
        """Both together."""
        return self.kv + self.ssm


def _no_flops(tokens: int, past: int) -> Flops:
    return Flops()


def _no_state(max_length: int, itemsize: int) -> StateBytes:
    return StateBytes()


@dataclass(frozen=True)
class Cost:
    """The cost of one part, for one row.

    parameters: number of entries of all its parameters.
    forward:    (tokens, past) -> Flops of one call on that many tokens after that many in the state.
                past = 0 is a call without a state, as in training.
    state:      (max_length, itemsize) -> StateBytes; itemsize: bytes of one number of the compute dtype.
                SSM states take max(4, itemsize) bytes a number.
    active:     entries of the parameters that one token uses; None: all of them.
    """

    parameters: int
    forward: Callable[[int, int], Flops] = _no_flops
    state: Callable[[int, int], StateBytes] = _no_state
    active: int | None = None

    @property
    def used(self) -> int:
        """active, as a number."""
        return self.parameters if self.active is None else self.active

    def __add__(self, other: Cost) -> Cost:
        return total([self, other])


def total(costs: Sequence[Cost]) -> Cost:
    """The cost of parts that all run."""
    return Cost(
        sum(cost.parameters for cost in costs),
        lambda tokens, past: sum((cost.forward(tokens, past) for cost in costs), Flops()),
        lambda max_length, itemsize: sum((cost.state(max_length, itemsize) for cost in costs), StateBytes()),
        sum(cost.used for cost in costs),
    )


def linear(tokens: float, inputs: int, outputs: int) -> Flops:
    """A matrix product of `tokens` rows: 2 m n k."""
    return Flops(matmul=2 * tokens * inputs * outputs)
