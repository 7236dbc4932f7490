"""Law C15 on one call of an op: a backend against the float64 reference, outputs, final state and every gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlm.ops.draw import Example

EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}
"""The most error, RMS over RMS, in a dtype that is meant to be exact."""

FLOOR = {torch.bfloat16: 1.66e-3, torch.float16: 2.1e-4}
"""The error of rounding once to a dtype, as measured on normally distributed numbers."""

WORST = 10
"""A single token may be this many times the limit off, a global RMS being blind to one bad token."""

LOOSER, GRADIENTS = 2, 4
"""How many times the error of plain PyTorch a kernel's outputs, and its gradients, may be off."""


class Agreement(NamedTuple):
    """One tensor: error, RMS over RMS; worst, the same of its worst row; what error may be, and worst WORST times."""

    name: str
    error: float
    worst: float
    limit: float

    @property
    def strain(self) -> float:
        """How much of the limit was used: over 1 is a failure."""
        return max(self.error, self.worst / WORST) / self.limit


def agreement(example: Example, backend: str, gradients: bool = True) -> Iterator[Agreement]:
    """Every output, and with `gradients` the gradient of every argument, of a backend against the float64 reference.

    Decoding has no gradients.
    UnsupportedError: the backend cannot take this call.
    """
    gradients = gradients and not example.decoding
    got = _everything(example, backend, gradients)
    want = _everything(example.double(), "reference", gradients)
    plain = _everything(example, "reference", gradients)
    if got.keys() != want.keys():
        raise AssertionError(f"{example.op}: {backend} gives {', '.join(got)}, the reference {', '.join(want)}")
    dtype = next(iter(example.tensors.values())).dtype
    for name, tensor in got.items():
        limit = _limit(dtype, distance(plain[name], want[name])[0], name.startswith("d "))
        yield Agreement(name, *distance(tensor, want[name]), limit)


def distance(got: Tensor, want: Tensor) -> tuple[float, float]:
    """(RMS of the error, RMS of the error of the worst row), both over the RMS of `want`; a row is (1, 1, ...).

    A NaN counts as infinitely wrong. Where `want` is zero throughout, the error is not divided.
    """
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    square = (got.detach().double() - want.detach()).nan_to_num(torch.inf).square()
    scale = want.detach().square().mean().sqrt().item() or 1.0
    rows = square.flatten(0, 1).flatten(1).mean(dim=1) if square.ndim > 2 else square.mean()
    return square.mean().sqrt().item() / scale, rows.max().sqrt().item() / scale


def _everything(example: Example, backend: str, gradients: bool) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    if not gradients:
        with torch.no_grad():
            outputs, found = example(backend), {}
    else:
        outputs, found = example.gradients(backend)
    names = ["y"] + [f"state {i}" for i in range(1, len(outputs))]
    return dict(zip(names, outputs, strict=True)) | {f"d {name}": tensor for name, tensor in found.items()}


def _limit(dtype: torch.dtype, plain: float, gradient: bool) -> float:
    """What may be off in a dtype where plain PyTorch is off by `plain`."""
    if dtype in EXACT:
        return max(4 * EXACT[dtype], LOOSER * plain) if gradient else EXACT[dtype]
    return (GRADIENTS if gradient else LOOSER) * max(plain, FLOOR[dtype])
