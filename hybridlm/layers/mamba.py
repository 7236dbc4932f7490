"""Mamba: a selective state space, whose step size, input map and output map are functions of the token.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = C_t . h_t + D x_t        channel by channel, N states each
    dt_t = softplus(W_dt s_t + b),    [s_t, B_t, C_t] = W_x x_t,    x = silu(conv(W_in u))
    out_t = W_out (y_t * silu(z_t))

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (2023, arXiv:2312.00752): eq. 2a and 2b,
algorithm 2, figure 3, section 3.6. Differs from the paper: B-bar = dt B (Euler) as in the paper's code, where eq. 4 has
the exact zero-order hold, `discretization: zoh`; `select` and `gate` take away what the ablations of section 4.6 take
away; `bcdt_norm` normalises s, B and C as Jamba does (Lieber et al. 2024, arXiv:2403.19887).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import choice, distinct, factor, flag, interval, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.norm import RMSNorm
from hybridlm.layers.short_conv import ShortConv, short_conv_cost
from hybridlm.layers.wide_linear import WideLinear
from hybridlm.ops.selective_scan import scan_flops, selective_scan
from hybridlm.ops.split import split
from hybridlm.ops.steps import steps_and_rates
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """A selective state space of N states a channel.

    d_state: states N of a channel.
    d_conv: width k of the short convolution; 1 sees the token alone.
    expand: channels of the inner stream, as a multiple of d_model; expand * d_model is a whole number.
    dt_rank: width R of the bottleneck that dt comes from; default d_model / 16, rounded up.
    bcdt_norm: RMSNorm on dt's bottleneck, B and C, as in Jamba; on those that are selected.
    dt_min, dt_max: the initial step dt of each channel is drawn log-uniformly between them; 1 / dt is its memory.
    discretization: euler (B-bar = dt B), or zoh, the exact zero-order hold.
    select: which of dt, B and C are functions of the token; each of the others is one learned vector.
    gate: multiply by silu(z) before the output projection.
    """

    d_state: int = 16
    d_conv: int = 4
    expand: float = 2
    dt_rank: int | None = None
    bcdt_norm: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    discretization: str = "euler"
    select: tuple[str, ...] = ("dt", "B", "C")
    gate: bool = True

    def resolve(self, d_model: int) -> "MambaConfig":
        """Every default filled in, every field checked."""
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=whole("d_state", self.d_state, high=4096),
            d_conv=whole("d_conv", self.d_conv, high=64),
            expand=factor("expand", self.expand, "d_model", d_model),
            dt_rank=whole("dt_rank", math.ceil(d_model / 16) if self.dt_rank is None else self.dt_rank),
            bcdt_norm=flag("bcdt_norm", self.bcdt_norm),
            dt_min=dt_min,
            dt_max=dt_max,
            discretization=choice("discretization", self.discretization, ("euler", "zoh")),
            select=distinct("select", self.select, ("dt", "B", "C")),
            gate=flag("gate", self.gate),
        )

    def inner(self, d_model: int) -> int:
        """Channels of the inner stream."""
        return round(self.expand * d_model)

    def columns(self) -> dict[str, int]:
        """What is read off a token, and how wide it is: the bottleneck of dt, B and C, as far as they are selected."""
        widths = {"dt": self.dt_rank, "B": self.d_state, "C": self.d_state}
        return {name: widths[name] for name in self.select}


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
        c, d_inner = self.config, self.config.inner(d_model)
        self.in_proj = Linear(d_model, (1 + c.gate) * d_inner, bias=False)
        self.conv1d = ShortConv(d_inner, c.d_conv)
        self.x_proj = Linear(d_inner, sum(c.columns().values()), bias=False) if c.select else None
        norm = (lambda width: RMSNorm(width, eps)) if c.bcdt_norm else nn.Identity
        self.dt_layernorm = norm(c.dt_rank) if "dt" in c.select else None
        self.b_layernorm = norm(c.d_state) if "B" in c.select else None
        self.c_layernorm = norm(c.d_state) if "C" in c.select else None
        self.dt_proj = WideLinear(c.dt_rank, d_inner) if "dt" in c.select else WideBias(d_inner)
        self.B = None if "B" in c.select else nn.Parameter(torch.empty(c.d_state))
        self.C = None if "C" in c.select else nn.Parameter(torch.empty(c.d_state))
        self.A_log = nn.Parameter(torch.empty(d_inner, c.d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = Linear(d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """S4D-Real for A, step sizes spread over [dt_min, dt_max], the rest as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        for name in ("in_proj", "x_proj", "out_proj") if c.select else ("in_proj", "out_proj"):
            init.linear(getattr(self, name), streams, name)
        self.conv1d.reset_parameters(streams.at("conv1d"))
        for name in c.select if c.bcdt_norm else ():
            getattr(self, f"{name.lower()}_layernorm").reset_parameters()
        if "dt" in c.select:
            bound = c.dt_rank**-0.5  # keeps the variance of its input
            init.uniform(self.dt_proj.weight, -bound, bound, streams("dt_proj.weight"))
        init.steps(self.dt_proj.bias, c.dt_min, c.dt_max, streams("dt_proj.bias"))
        if self.B is not None:
            init.fill(self.B, torch.ones(self.B.shape))  # as in S4D, where only C is drawn: their product matters
        if self.C is not None:
            init.normal(self.C, 1, streams("C"))
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
    ) -> tuple[Float[Tensor, "b t e"], MambaState | None]:
        x, ctx = self.enter(x, state, ctx)
        conv, ssm, in_place = (None, None, False) if state is None else (state.conv, state.ssm, state.in_place)
        x, *z = split(self.in_proj(x), len(self.D))
        x, conv = self.conv1d(x, conv, ctx, in_place)
        dt, A, B, C = self.select(x)
        y, ssm = selective_scan(
            x,
            ctx.keep_valid(dt),  # a step of size 0 passes over a pad
            A,
            B,
            C,
            self.D,
            state=ssm,
            document=ctx.document,
            zoh=self.config.discretization == "zoh",
            in_place=in_place,
        )
        y = self.out_proj(y * F.silu(z[0]) if z else y)
        return y, None if state is None else state.advance(conv=conv, ssm=ssm)

    def select(self, x: Float[Tensor, "b t c"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The selection mechanism, algorithm 2: dt (b, t, d_inner), B and C (b, t, N) from x; and A (d_inner, N).

        What is not selected is the same for every token.
        """
        columns, each = self.config.columns(), (*x.shape[:2], -1)
        parts = self.x_proj(x).split(list(columns.values()), dim=-1) if columns else ()
        seen = dict(zip(columns, parts, strict=True))
        dt = self.dt_proj(self.dt_layernorm(seen["dt"]) if "dt" in seen else x)
        B = self.b_layernorm(seen["B"]) if "B" in seen else self.B.expand(each)
        C = self.c_layernorm(seen["C"]) if "C" in seen else self.C.expand(each)
        return *steps_and_rates(dt, None, self.A_log), B, C

    @classmethod
    def cost(cls, config: MambaConfig, d_model: int) -> Cost:
        """FLOPs of the scan as `scan_flops` counts them."""
        c, d_inner, columns = config, config.inner(d_model), config.columns()
        matrices = d_inner * ((2 + c.gate) * d_model + sum(columns.values()) + columns.get("dt", 0))
        fixed = sum(c.d_state for name in ("B", "C") if name not in columns)
        vectors = d_inner * (2 + c.d_state) + fixed + sum(columns.values()) * c.bcdt_norm

        def forward(tokens: int, past: int) -> Flops:
            return linear(tokens, matrices, 1) + Flops(
                *scan_flops(tokens, d_inner, c.d_state, c.discretization == "zoh")
            )

        return short_conv_cost(d_inner, c.d_conv) + Cost(
            matrices + vectors,
            forward,
            lambda max_length, itemsize: StateBytes(ssm=d_inner * c.d_state * max(4, itemsize)),
        )


class WideBias(nn.Module):
    """What is left of WideLinear when nothing is read: its bias, for every token, in at least float32."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        return self.bias + x.new_zeros(x.shape, dtype=state_dtype(x.dtype))
