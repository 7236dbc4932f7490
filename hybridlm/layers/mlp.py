"""The MLPs: what a block does to each token alone.

Each is built as `MLP(config, d_model)` from a Config whose `resolve(d_model)` fills in the width, maps (b, t, d_model)
to the same shape, and says what it costs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import whole
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear


@dataclass(frozen=True, kw_only=True)
class GatedConfig:
    """width: hidden units; default 8/3 d_model, rounded up to a multiple of 64."""

    width: int | None = None

    def resolve(self, d_model: int) -> "GatedConfig":
        width = -(-8 * d_model // 192) * 64 if self.width is None else self.width
        return replace(self, width=whole("width", width))


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """width: hidden units; default 4 d_model."""

    width: int | None = None

    def resolve(self, d_model: int) -> "PlainConfig":
        return replace(self, width=whole("width", 4 * d_model if self.width is None else self.width))


class MLP(nn.Module):
    """f(x G) * (x U) if gated, otherwise f(x U), projected back: what an MLP is, and its contract.

    activation is f; see Mixer for the other class constants. An MLP of another kind has a forward of its own.
    One with `reads_context` is called `mlp(x, ctx)`: it may look at what is known of the tokens beside x, and write to
    `ctx.journal`.
    """

    Config: ClassVar[type]
    residual_projections: ClassVar[tuple[str, ...]] = ("down_proj",)
    reads_context: ClassVar[bool] = False
    gated: ClassVar[bool] = False
    activation: ClassVar[Callable[[Tensor], Tensor]]

    def __init__(self, config, d_model: int):
        super().__init__()
        self.config = config.resolve(d_model)
        if self.gated:
            self.gate_proj = Linear(d_model, self.config.width, bias=False)
        self.up_proj = Linear(d_model, self.config.width, bias=False)
        self.down_proj = Linear(self.config.width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Initial values of every projection."""
        streams = streams or Streams.drawn()
        for name, layer in self.named_children():
            init.linear(layer, streams, name)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token for itself."""
        return self.down_proj(self.hidden(self.up_proj(x), self.gate_proj(x) if self.gated else None))

    @classmethod
    def hidden(cls, up: Float[Tensor, "*b w"], gate: Float[Tensor, "*b w"] | None) -> Float[Tensor, "*b w"]:
        """The hidden units, from what they are before the activation and, if gated, their gates."""
        return cls.activation(up) if gate is None else cls.activation(gate) * up

    @classmethod
    def cost(cls, config, d_model: int) -> Cost:
        """Its cost, from a resolved config alone."""
        size = (3 if cls.gated else 2) * d_model * config.width
        return Cost(size, lambda tokens, past: linear(tokens, size, 1))


class SwiGLU(MLP):
    """silu(x G) * (x U), projected back. Shazeer 2020, eq. 6."""

    Config = GatedConfig
    gated = True
    activation = staticmethod(F.silu)


class GEGLU(MLP):
    """gelu(x G) * (x U), projected back. Shazeer 2020, eq. 6."""

    Config = GatedConfig
    gated = True
    activation = staticmethod(F.gelu)


class GELU(MLP):
    """gelu(x U), projected back. Hendrycks and Gimpel 2016; Vaswani et al. 2017, section 3.3."""

    Config = PlainConfig
    activation = staticmethod(F.gelu)


class ReLU2(MLP):
    """relu(x U)^2, projected back. So et al. 2021 (Primer), section 4."""

    Config = PlainConfig

    @staticmethod
    def activation(x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """relu(x)^2."""
        return F.relu(x).square()
