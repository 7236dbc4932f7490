"""One call of an op with random arguments, and how to make them: what `ops/examples.py` is written with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sizes(NamedTuple):
    """b rows of t tokens, d channels; h heads of p channels and n states, in g groups; a vocabulary of v."""

    b: int
    t: int
    d: int
    h: int
    p: int
    g: int
    n: int
    v: int


TINY = Sizes(b=2, t=37, d=32, h=2, p=16, g=1, n=16, v=50)  # for Triton's interpreter
SMALL = Sizes(b=2, t=200, d=128, h=4, p=64, g=2, n=64, v=300)  # several chunks, the last one short
LARGE = Sizes(b=8, t=4096, d=2048, h=32, p=64, g=1, n=128, v=50304)  # what is timed


class Example(NamedTuple):
    """One call of an op.

    tensors: its floating arguments by name, of which gradients are taken. given: the others.
    """

    op: str
    case: str
    call: Callable[..., Any]
    tensors: dict[str, Tensor]
    given: dict[str, Any]

    def __call__(self, backend: str = "auto") -> tuple[Tensor, ...]:
        """Everything that the call returns: y, then the final state, if there is one. y is 0 at pads."""
        tensors = self.tensors
        if self.decoding:  # which writes over its state
            tensors = {name: v.clone() if name == "state" else v for name, v in tensors.items()}
        found = self.call(**tensors, **self.given, backend=backend)
        y, *rest = found if isinstance(found, tuple) else (found,)
        if (lengths := self.given.get("lengths")) is not None:
            valid = torch.arange(y.shape[1], device=y.device) < lengths[:, None]
            y = torch.where(valid.reshape(*valid.shape, *[1] * (y.ndim - 2)), y, 0)
        return y, *_flat(rest)

    @property
    def decoding(self) -> bool:
        """Whether it is a call without gradients, whose state may be written over."""
        return self.case == "decoding"

    def double(self) -> "Example":
        """The same numbers, as they were rounded, in float64."""
        return self._replace(tensors={name: tensor.double() for name, tensor in self.tensors.items()})

    def gradients(self, backend: str = "auto", seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The outputs, and the gradient of every tensor for a loss that weighs them with fixed N(0, 1) numbers."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}
        outputs = self._replace(tensors=leaves)(backend)
        weights = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(y.shape, generator=weights).to(y.device, torch.float64) for y in outputs]
        loss = sum((y.double() * w).sum() for y, w in zip(outputs, drawn, strict=True))
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return outputs, {name: x for name, x in zip(leaves, found, strict=True) if x is not None}


class Draw:
    """Random arguments of one case: `normal` in the dtype asked for, `wide` in at least float32."""

    def __init__(self, case: str, sizes: Sizes, device: torch.device | str, dtype: torch.dtype, seed: int):
        self.case, self.device, self.dtype = case, torch.device(device), dtype
        self.sizes = sizes
        self.b, self.t, self.d, self.h, self.p, self.g, self.n, self.v = sizes
        self.t = 1 if case in ("token", "decoding") else self.t
        self.float = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * self._randn(shape)).to(self.dtype)

    def wide(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * self._randn(shape)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform, in at least float32."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device, dtype=self.float)

    def steps(self, *shape: int) -> Tensor:
        """Step sizes, log-uniform between 1e-3 and 1e-1."""
        return self.between(-6.9, -2.3, *shape).exp()

    def state(self, *shape: int, name: str = "state", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A state before the first token, of at least float32 or of a dtype, but in the case `plain`."""
        return {} if self.case == "plain" else {name: self.wide(*shape).to(dtype or self.float)}

    def document(self) -> dict[str, Tensor]:
        """In the case `packed`: documents of 1, 2, 3, ... tokens; the first row goes on from its state."""
        if self.case != "packed":
            return {}
        steps = torch.arange(self.t, device=self.device)
        number = ((2 * steps + 0.25).sqrt() - 0.5).floor().long()  # of i, how many sums 1, 1 + 2, ... are at most i
        return {"document": number + torch.arange(self.b, device=self.device).clamp(max=1)[:, None]}

    def in_place(self) -> dict[str, bool]:
        """In the case `decoding`: the state may be written over."""
        return {"in_place": True} if self.case == "decoding" else {}

    def lengths(self) -> dict[str, Tensor]:
        """In the case `ragged`: one row is full, the others are half full."""
        if self.case != "ragged":
            return {}
        return {"lengths": torch.tensor([self.t] + [self.t // 2] * (self.b - 1), device=self.device)}

    def pairs(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Complex numbers as pairs, in at least float32."""
        return self.wide(*shape, 2, scale=scale)

    def of_hippo(self, *system: Tensor) -> list[Tensor]:
        """A system of HiPPO for each of d channels."""
        return [v.to(self.device, self.float).expand(self.d, -1, -1).clone() for v in system]

    def _randn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.float)


def _flat(values: Any) -> list[Tensor]:
    """The tensors in nested tuples; None is left out."""
    if isinstance(values, Tensor):
        return [values]
    return [] if values is None else [tensor for value in values for tensor in _flat(value)]
