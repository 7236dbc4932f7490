"""Mamba: a selective state space, whose step size, input map and output map are functions of the token.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = C_t . h_t + D x_t        channel by channel, N states each
    dt_t = softplus(W_dt s_t + b),    [s_t, B_t, C_t] = W_x x_t,    x = silu(conv(W_in u))
    out_t = W_out (y_t * silu(z_t))

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (2023, arXiv:2312.00752): eq. 2a and 2b,
algorithm 2, figure 3, section 3.6. Differs from the paper: B-bar = dt B (Euler) as in the paper's code, where eq. 4 has
the exact zero-order hold; `bcdt_norm` normalises s, B and C as Jamba does (Lieber et al. 2024, arXiv:2403.19887).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import flag, interval, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.norm import RMSNorm
from hybridlm.layers.short_conv import ShortConv, short_conv_cost
from hybridlm.ops.selective_scan import scan_flops, selective_scan
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """A selective state space of N states a channel.

    d_state: states N of a channel.
    d_conv: width k of the short convolution.
    expand: channels of the inner stream, as a multiple of d_model.
    dt_rank: width R of the bottleneck that dt comes from; default d_model / 16, rounded up.
    bcdt_norm: RMSNorm on dt's bottleneck, B and C, as in Jamba.
    dt_min, dt_max: the initial step dt of each channel is drawn log-uniformly between them; 1 / dt is its memory.
    """

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    bcdt_norm: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def resolve(self, d_model: int) -> "MambaConfig":
        """Every default filled in, every field checked."""
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=whole("d_state", self.d_state, high=4096),
            d_conv=whole("d_conv", self.d_conv, low=2, high=64),
            expand=whole("expand", self.expand, high=64),
            dt_rank=whole("dt_rank", math.ceil(d_model / 16) if self.dt_rank is None else self.dt_rank),
            bcdt_norm=flag("bcdt_norm", self.bcdt_norm),
            dt_min=dt_min,
            dt_max=dt_max,
        )


@dataclass
class MambaState(LayerState):
    """conv: the last k - 1 inputs of the convolution, (b, d_inner, k - 1), compute dtype.
    ssm: h of every channel, (b, d_inner, N), float32 or float64."""

    kind = "mamba"
    conv: Tensor
    ssm: Tensor


class Mamba(Mixer):
    """Selective state space (Mamba-1, S6): linear in time, a state of constant size, input-dependent memory."""

    Config = MambaConfig
    State = MambaState
    letter = "m"
    recurrent = True
    param_groups: ClassVar = {name: {"weight_decay": 0.0} for name in ("A_log", "D", "dt_proj.bias")}
    residual_projections = ("out_proj",)
    initial_fields = ("dt_min", "dt_max")

    def __init__(self, config: MambaConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c, d_inner = self.config, self.config.expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = ShortConv(d_inner, c.d_conv)
        self.x_proj = nn.Linear(d_inner, c.dt_rank + 2 * c.d_state, bias=False)
        self.dt_layernorm = RMSNorm(c.dt_rank, eps) if c.bcdt_norm else nn.Identity()
        self.b_layernorm = RMSNorm(c.d_state, eps) if c.bcdt_norm else nn.Identity()
        self.c_layernorm = RMSNorm(c.d_state, eps) if c.bcdt_norm else nn.Identity()
        self.dt_proj = WideLinear(c.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, c.d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """S4D-Real for A, step sizes spread over [dt_min, dt_max], the rest as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        for name in ("in_proj", "x_proj", "out_proj"):
            init.linear(getattr(self, name), streams, name)
        self.conv1d.reset_parameters(streams.at("conv1d"))
        if c.bcdt_norm:
            for norm in (self.dt_layernorm, self.b_layernorm, self.c_layernorm):
                norm.reset_parameters()
        bound = c.dt_rank**-0.5  # keeps the variance of its input
        init.uniform(self.dt_proj.weight, -bound, bound, streams("dt_proj.weight"))
        dt = init.log_uniform(self.D.shape, c.dt_min, c.dt_max, streams("dt_proj.bias"))
        init.fill(self.dt_proj.bias, init.inverse_softplus(dt.clamp(min=1e-4)))  # smaller steps would never be learned
        init.fill(self.A_log, torch.arange(1, c.d_state + 1).log().expand_as(self.A_log))  # S4D-Real: A_n = -(n + 1)
        init.fill(self.D, torch.ones(self.D.shape))

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> MambaState:
        dtype = dtype or torch.get_default_dtype()
        d_inner, d_state = self.A_log.shape
        return MambaState(
            torch.zeros(batch, d_inner, self.config.d_conv - 1, device=device, dtype=dtype),
            torch.zeros(batch, d_inner, d_state, device=device, dtype=state_dtype(dtype)),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: MambaState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t d"], MambaState | None]:
        x, ctx = self.enter(x, state, ctx)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv = self.conv1d(x, None if state is None else state.conv, ctx)
        dt, B, C = self.select(x)
        y, ssm = selective_scan(
            x,
            ctx.keep_valid(dt),  # a step of size 0 passes over a pad
            -torch.exp(self.A_log.to(dt.dtype)),
            B,
            C,
            self.D,
            state=None if state is None else state.ssm,
            document=ctx.document,
        )
        y = self.out_proj(y * F.silu(z))
        return y, None if state is None else state.advance(conv=conv, ssm=ssm)

    def select(self, x: Float[Tensor, "b t c"]) -> tuple[Tensor, Tensor, Tensor]:
        """The selection mechanism, algorithm 2: dt (b, t, d_inner), B and C (b, t, N), all functions of x."""
        c = self.config
        dt, B, C = self.x_proj(x).split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
        return F.softplus(self.dt_proj(dt)), B, C

    @classmethod
    def cost(cls, config: MambaConfig, d_model: int) -> Cost:
        """FLOPs of the scan as `scan_flops` counts them."""
        c, d_inner = config, config.expand * d_model
        matrices = d_inner * (3 * d_model + 2 * c.dt_rank + 2 * c.d_state)
        vectors = d_inner * (2 + c.d_state) + (c.dt_rank + 2 * c.d_state if c.bcdt_norm else 0)
        return short_conv_cost(d_inner, c.d_conv) + Cost(
            matrices + vectors,
            lambda tokens, past: linear(tokens, matrices, 1) + Flops(*scan_flops(tokens, d_inner, c.d_state)),
            lambda max_length, itemsize: StateBytes(ssm=d_inner * c.d_state * max(4, itemsize)),
        )


class WideLinear(nn.Linear):
    """A linear layer in at least float32, whatever its weights and autocast say: a rounded dt is a wrong memory."""

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        wide = state_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))
