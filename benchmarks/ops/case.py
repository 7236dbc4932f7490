"""What an op is timed on: its inputs, who computes it, and how a part of the result is checked in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.architecture import relative

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """tokens: of a call, in rows of the length at hand. h heads of width p, state n, inner width d, d_model, vocab."""

    tokens: int = 65536
    h: int = 64
    p: int = 64
    n: int = 128
    d: int = 4096
    scan_n: int = 16
    model: int = 1024
    vocab: int = 50304
    window: int = 1024
    layer_tokens: int = 8 * 4096
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0

    @classmethod
    def small(cls, **changes) -> Sizes:
        """For a CPU."""
        few = {"tokens": 1024, "h": 2, "p": 16, "n": 16, "d": 32, "scan_n": 4, "model": 32, "vocab": 64, "window": 32}
        return cls(**few, layer_tokens=256, device="cpu", dtype=torch.float32, **changes)

    def rows(self, length: int) -> int:
        """Rows of this length in a call."""
        return max(1, self.tokens // length)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Gaussian numbers."""
        return (torch.randn(*shape, device=self.device) * scale).to(dtype or self.dtype)

    def steps(self, *shape: int) -> Tensor:
        """Step sizes as softplus gives them: log-uniform in [1e-3, 1e-1], float32."""
        return (torch.rand(*shape, device=self.device) * 4.6 - 6.9).exp()


@dataclass
class Way:
    """Somebody's way to compute an op.

    run:     prepared tensors -> y. prepare: inputs -> tensors in the layout that it wants, not timed.
    back:    its y, or the gradient of its leaf `leaf`, in our layout.
    missing: why it cannot run here. weights: what else gets a gradient. chooses: which backend, the op finds out.
    """

    run: Callable[[Tensors], Tensor]
    prepare: Callable[[Tensors], Tensors] = dict
    back: Callable[[Tensor], Tensor] = lambda y: y
    missing: Callable[[], str | None] = lambda: None
    weights: Callable[[], list[Tensor]] = list
    leaf: str | None = None
    ours: bool = False
    label: str = ""
    chooses: bool = False


@dataclass
class Case:
    """An op at a length.

    draw:    the inputs. ways: who computes it, ours first.
    cut:     inputs -> the part of them that a part of the result depends on.
    true:    that part -> its y, in float64. take: the whole y -> the part. leaf: the input whose gradient is checked,
             and grad: that gradient as a whole -> the part.
    flops:   of matrix products, forward. backward: forward and backward over forward. special: exponentials, forward.
    blocks:  note the largest allocation of a call.
    """

    name: str
    draw: Callable[[], Tensors]
    ways: Mapping[str, Way]
    cut: Callable[[Tensors], Tensors]
    true: Callable[[Tensors], Tensor]
    take: Callable[[Tensor], Tensor]
    leaf: str | None = None
    grad: Callable[[Tensor], Tensor] | None = None
    flops: float = 0.0
    backward: float = 3.0
    special: float = 0.0
    tokens: int = 0
    blocks: bool = False

    def wanted(self, given: Tensors) -> list[str]:
        """Inputs that get a gradient."""
        return [name for name, tensor in given.items() if tensor.is_floating_point()]


def leaves(case: Case, given: Tensors) -> tuple[Tensors, list[Tensor]]:
    """Fresh tensors to call with, and those of them that get a gradient."""
    fresh = {name: tensor.detach() for name, tensor in given.items()}
    return fresh, [fresh[name].requires_grad_() for name in case.wanted(fresh)]


def error_of(case: Case, way: Way, inputs: Tensors, out: Tensor, grads: Tensors | None, weight: Tensor) -> float:
    """The larger of two relative RMS errors: of the checked part of y, and of the gradient of the checked input."""
    part = {k: v.detach().double() if v.is_floating_point() else v for k, v in case.cut(inputs).items()}
    if case.leaf is not None and grads is not None:
        part[case.leaf].requires_grad_()
    y = case.true(part)
    found = relative(case.take(way.back(out)).detach(), y.detach())
    if case.leaf is None or grads is None:
        return found
    y.backward(case.take(way.back(weight)).double())
    mine = grads.get(way.leaf or case.leaf)
    return max(found, relative(case.grad(way.back(mine) if way.leaf is None else mine), part[case.leaf].grad))


def ours(op: Callable[..., Tensor], names: tuple[str, ...] = ("triton", "vendor", "reference")) -> dict[str, Way]:
    """A way for each backend of an op of ours. op: (tensors, backend) -> y."""
    return {
        f"hybridlm {name}": Way(lambda g, name=name: op(g, name), ours=True, label="our op", chooses=name == "auto")
        for name in names
    }
