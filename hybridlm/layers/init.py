"""Initial values. Every parameter draws from a random stream of its own, keyed by (seed, path of the parameter).

So a parameter's first values do not depend on which others exist, on the device, or on the order of construction:
building on the meta device and filling in later gives the same model, and so does adding a layer behind the others.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Streams:
    """Random streams below a path. `streams("in_proj.weight")` is the generator of that parameter."""

    seed: int
    path: str = ""

    @classmethod
    def drawn(cls) -> Streams:
        """Streams from a seed that torch's global generator gives: `torch.manual_seed` decides."""
        return cls(int(torch.randint(2**62, (), device="cpu").item()))

    def at(self, name: str) -> Streams:
        """The streams one level down."""
        return Streams(self.seed, f"{self.path}{name}.")

    def __call__(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}:{self.path}{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Copy values into the parameter, whatever its dtype and device."""
    parameter.copy_(values)


def normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """N(0, std^2). On the meta device nothing is drawn."""
    if not parameter.is_meta:
        fill(parameter, std * torch.randn(parameter.shape, generator=generator, device="cpu"))


def uniform(parameter: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """U(low, high). On the meta device nothing is drawn."""
    if not parameter.is_meta:
        fill(parameter, low + (high - low) * torch.rand(parameter.shape, generator=generator, device="cpu"))


def linear(layer: nn.Linear, streams: Streams, name: str) -> None:
    """Weight N(0, 1 / (3 fan_in)): the variance of PyTorch's own default, 0.018 at width 1024. Bias 0."""
    normal(layer.weight, (3 * layer.in_features) ** -0.5, streams(f"{name}.weight"))
    if layer.bias is not None:
        fill(layer.bias, torch.zeros(layer.bias.shape))


def log_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """exp U(log low, log high), float64."""
    span = math.log(high) - math.log(low)
    return torch.exp(math.log(low) + span * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu"))


def steps(bias: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """The bias under a softplus that gives steps exp U(log low, log high). On the meta device nothing is drawn."""
    if not bias.is_meta:
        dt = log_uniform(bias.shape, low, high, generator)
        fill(bias, inverse_softplus(dt.clamp(min=1e-4)))  # smaller steps would never be learned


def rates(A_log: Tensor, generator: torch.Generator) -> None:
    """log(-A), A ~ U(-16, -1): uniform, not log-uniform, as in Mamba-2's code. On the meta device nothing is drawn."""
    if not A_log.is_meta:
        fill(A_log, (1 + 15 * torch.rand(A_log.shape, generator=generator, device="cpu")).log())


def inverse_softplus(x: Tensor) -> Tensor:
    """The y with log(1 + e^y) = x, stable for small x."""
    return x + torch.log(-torch.expm1(-x))
