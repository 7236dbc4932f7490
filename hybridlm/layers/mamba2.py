"""Mamba-2: a selective state space with one scalar decay a head, computed as attention inside chunks (SSD).

    H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T,    y_t = H_t C_t + D x_t        head by head, H of shape (P, N)
    [z, x, B, C, dt] = W_in u,    [x, B, C] = silu(conv([x, B, C])),    dt = softplus(dt + b)
    out_t = W_out RMSNorm(y_t * silu(z_t))

Dao and Gu, Transformers are SSMs (2024, arXiv:2405.21060): sections 6 and 7.1, figure 6, listing 1. In the analogy with
attention C is the query, B the key, x the value; heads of a group share B and C. Differs from the paper's code: none of
its optional biases, and no limits on dt.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import flag, inner_heads, interval, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.short_conv import ShortConv, short_conv_cost
from hybridlm.ops.norm import gated_rms_norm
from hybridlm.ops.split import split
from hybridlm.ops.ssd import ssd, ssd_flops
from hybridlm.ops.steps import steps_and_rates
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """A matrix-valued state (P, N) a head.

    d_state: states N of a channel, the width of B and C.
    head_dim: channels P of a head, a divisor of expand * d_model; default the largest up to 64.
    expand: channels of the inner stream, as a multiple of d_model; expand * d_model is a whole number.
    n_groups: groups of heads that share B and C, a divisor of the number of heads.
    d_conv: width k of the short convolution; 1 sees the token alone.
    chunk: tokens that are computed as attention at a time; changes speed, not results.
    dt_min, dt_max: the initial step dt of each head is drawn log-uniformly between them; 1 / dt is its memory.
    gated_norm: RMSNorm after the gate; without it, as in Falcon-H1, the gate alone.
    """

    d_state: int = 128
    head_dim: int | None = None
    expand: float = 2
    n_groups: int = 1
    d_conv: int = 4
    chunk: int = 64
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    gated_norm: bool = True

    def resolve(self, d_model: int) -> "Mamba2Config":
        """Every default filled in, every shape checked."""
        expand, head_dim, n_groups = inner_heads(d_model, self.expand, self.head_dim, self.n_groups)
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=whole("d_state", self.d_state, high=4096),
            head_dim=head_dim,
            expand=expand,
            n_groups=n_groups,
            d_conv=whole("d_conv", self.d_conv, high=64),
            chunk=whole("chunk", self.chunk, low=2, high=4096),
            dt_min=dt_min,
            dt_max=dt_max,
            gated_norm=flag("gated_norm", self.gated_norm),
        )

    def inner(self, d_model: int) -> int:
        """Channels of the inner stream."""
        return round(self.expand * d_model)

    def heads(self, d_model: int) -> int:
        """Number of heads h."""
        return self.inner(d_model) // self.head_dim


@dataclass
class Mamba2State(LayerState):
    """conv: the last k - 1 inputs of the convolution, (b, d_inner + 2 g N, k - 1), compute dtype.
    ssm: H of every head, (b, h, P, N), float32 or float64."""

    kind = "mamba2"
    conv: Tensor
    ssm: Tensor


class Mamba2(Mixer):
    """Selective state space in matrix form (Mamba-2, SSD): linear in time, a large state of constant size."""

    Config = Mamba2Config
    State = Mamba2State
    letter = "M"
    recurrent = True
    param_groups: ClassVar = {name: {"weight_decay": 0.0} for name in ("A_log", "D", "dt_bias")}
    residual_projections = ("out_proj",)
    initial_fields = ("dt_min", "dt_max")

    def __init__(self, config: Mamba2Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c, heads, d_inner = self.config, self.config.heads(d_model), self.config.inner(d_model)
        self.widths = [d_inner, d_inner + 2 * c.n_groups * c.d_state, heads]  # of z, of [x, B, C], of dt
        self.in_proj = Linear(d_model, sum(self.widths), bias=False)
        self.conv1d = ShortConv(self.widths[1], c.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(d_inner, eps) if c.gated_norm else None
        self.out_proj = Linear(d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """A in [-16, -1], step sizes spread over [dt_min, dt_max], the rest as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        init.linear(self.in_proj, streams, "in_proj")
        self.conv1d.reset_parameters(streams.at("conv1d"))
        init.steps(self.dt_bias, c.dt_min, c.dt_max, streams("dt_bias"))
        init.rates(self.A_log, streams("A_log"))
        init.fill(self.D, torch.ones(self.D.shape))
        if self.norm is not None:
            self.norm.reset_parameters()
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> Mamba2State:
        c, dtype = self.config, dtype or torch.get_default_dtype()
        shape = (batch, len(self.D), c.head_dim, c.d_state)
        return Mamba2State(
            torch.zeros(batch, self.widths[1], c.d_conv - 1, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=state_dtype(dtype)),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: Mamba2State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], Mamba2State | None]:
        x, ctx = self.enter(x, state, ctx)
        conv, ssm, in_place = (None, None, False) if state is None else (state.conv, state.ssm, state.in_place)
        z, xBC, dt = split(self.in_proj(x), self.widths)
        xBC, conv = self.conv1d(xBC, conv, ctx, in_place)
        x, B, C = self.split(xBC)
        dt, A = steps_and_rates(dt, self.dt_bias, self.A_log)
        y, ssm = ssd(
            x,
            ctx.keep_valid(dt),  # a step of size 0 passes over a pad
            A,
            B,
            C,
            self.D,
            state=ssm,
            document=ctx.document,
            chunk=self.config.chunk,
            in_place=in_place,
        )
        y = rearrange(y, "b t h p -> b t (h p)")
        y = self.out_proj(y * F.silu(z) if self.norm is None else self.norm(y, z, self.config.n_groups))
        return y, None if state is None else state.advance(conv=conv, ssm=ssm)

    def split(self, xBC: Float[Tensor, "b t c"]) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, t, h, P), B and C (b, t, g, N)."""
        c = self.config
        x, B, C = xBC.split([self.widths[0], c.n_groups * c.d_state, c.n_groups * c.d_state], dim=-1)
        x = rearrange(x, "b t (h p) -> b t h p", p=c.head_dim)
        return x, *(rearrange(v, "b t (g n) -> b t g n", n=c.d_state) for v in (B, C))

    @classmethod
    def cost(cls, config: Mamba2Config, d_model: int) -> Cost:
        """FLOPs of SSD as `ssd_flops` counts them."""
        c, heads, d_inner = config, config.heads(d_model), config.inner(d_model)
        channels = d_inner + 2 * c.n_groups * c.d_state
        matrices = d_model * (d_inner + channels + heads + d_inner)

        def forward(tokens: int, past: int) -> Flops:
            heart = ssd_flops(tokens, heads, c.head_dim, c.n_groups, c.d_state, c.chunk)
            return linear(tokens, matrices, 1) + Flops(*heart)

        return short_conv_cost(channels, c.d_conv) + Cost(
            matrices + 3 * heads + d_inner * c.gated_norm,
            forward,
            lambda max_length, itemsize: StateBytes(ssm=d_inner * c.d_state * max(4, itemsize)),
        )


class GatedRMSNorm(nn.Module):
    """RMSNorm(y silu(z)), each group of heads apart. Dao and Gu 2024, section 7.1."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        """Weights 1."""
        nn.init.ones_(self.weight)

    def forward(self, y: Float[Tensor, "b t d"], z: Float[Tensor, "b t d"], groups: int) -> Float[Tensor, "b t d"]:
        return gated_rms_norm(y, z, self.weight, self.eps, groups)
