"""The short convolution as a mixer of its own: each channel sees the last k tokens, between two gates.

    y_t = W_out (C_t * z_t),    z_t = sum_{j < k} w_j (B * x)_{t-j},    [B, C, x] = W_in u        channel by channel
    without gates:    y_t = W_out silu(z_t),    z_t = sum_{j < k} w_j x_{t-j},    x = W_in u

Liquid AI, LFM2 Technical Report (2025, arXiv:2511.23404), the gated short convolution block. Differs from the paper:
`gate: false`, which is the convolution that stands in front of Mamba's scan (Gu and Dao 2023, figure 3), alone.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import flag, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer
from hybridlm.layers.short_conv import ShortConv, short_conv_cost
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class ShortConvMixerConfig:
    """A filter of k taps a channel.

    d_conv: taps k, the present token and the k - 1 before it.
    gate: multiply by B before the convolution and by C after it, as LFM2 does; otherwise silu after it.
    bias: biases on the convolution and on both projections, LFM2's conv_bias.
    """

    d_conv: int = 3
    gate: bool = True
    bias: bool = False

    def resolve(self, d_model: int) -> "ShortConvMixerConfig":
        """Every field checked."""
        return replace(
            self,
            d_conv=whole("d_conv", self.d_conv, low=2, high=64),
            gate=flag("gate", self.gate),
            bias=flag("bias", self.bias),
        )

    @property
    def streams(self) -> int:
        """What in_proj gives: B, C and x, or x alone."""
        return 3 if self.gate else 1


@dataclass
class ShortConvMixerState(LayerState):
    """conv: the last k - 1 inputs of the convolution, (b, d, k - 1), compute dtype."""

    kind = "short_conv"
    conv: Tensor


class ShortConvMixer(Mixer):
    """Gated short convolution (LFM2): the last k tokens, channel by channel; the cheapest mixer with a state."""

    Config = ShortConvMixerConfig
    State = ShortConvMixerState
    letter = "C"
    recurrent = True
    residual_projections = ("out_proj",)

    def __init__(self, config: ShortConvMixerConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c = self.config
        self.in_proj = Linear(d_model, c.streams * d_model, bias=c.bias)
        self.conv = ShortConv(d_model, c.d_conv, bias=c.bias, activation=None if c.gate else "silu")
        self.out_proj = Linear(d_model, d_model, bias=c.bias)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Projections as every linear layer, the filter as every short convolution."""
        streams = streams or Streams.drawn()
        init.linear(self.in_proj, streams, "in_proj")
        self.conv.reset_parameters(streams.at("conv"))
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> ShortConvMixerState:
        return ShortConvMixerState(torch.zeros(batch, self.d_model, self.config.d_conv - 1, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t d"], state: ShortConvMixerState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], ShortConvMixerState | None]:
        x, ctx = self.enter(x, state, ctx)
        held, in_place = (None, False) if state is None else (state.conv, state.in_place)
        if self.config.gate:
            B, C, x = self.in_proj(x).chunk(3, dim=-1)
            z, conv = self.conv(B * x, held, ctx, in_place)
            y = self.out_proj(C * z)
        else:
            z, conv = self.conv(self.in_proj(x), held, ctx, in_place)
            y = self.out_proj(z)
        return y, None if state is None else state.advance(conv=conv)

    @classmethod
    def cost(cls, config: ShortConvMixerConfig, d_model: int) -> Cost:
        """The gates are not counted, as no gate is."""
        matrices = (config.streams + 1) * d_model**2
        biases = (config.streams + 1) * d_model if config.bias else 0
        return short_conv_cost(d_model, config.d_conv, bias=config.bias) + Cost(
            matrices + biases, lambda tokens, past: linear(tokens, matrices, 1)
        )
