"""S4, the structured state space layer: a linear system a channel, convolution in training, recurrence in decoding.

    h_t = Abar h_{t-1} + Bbar u_t,    y_t = C h_t + D u_t,    A = diag(Lambda) - P P^*  (HiPPO-LegS at first)
    Abar = (I - dt/2 A)^-1 (I + dt/2 A),    Bbar = (I - dt/2 A)^-1 dt B
    out_t = a_t * sigmoid(g_t),    [a_t, g_t] = W gelu(y_t) + b

Gu, Goel, Re, Efficiently Modeling Long Sequences with Structured State Spaces (2021, arXiv:2111.00396): eq. 3,
theorem 1, algorithm 1, section 3.4. Differs from the paper's code: the trained C is C itself, not C (I - Abar^L), so it
belongs to no length; Q = P, so the system is stable whatever is learned; no dropout.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import interval, paired, real
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.ops.hippo import dplr
from hybridlm.ops.ssm_kernel import s4_flops, s4_scan
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class S4Config:
    """One linear system a channel.

    d_state: states N of a channel, even, as they come in conjugate couples.
    dt_min, dt_max: the step dt of each channel is drawn log-uniformly between them; 1 / dt is its memory in tokens.
    time_scale: what every dt is multiplied with: 2 where a signal comes at half the rate of training.
    """

    d_state: int = 64
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    time_scale: float = 1.0

    def resolve(self, d_model: int) -> "S4Config":
        """Every field checked."""
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=paired("d_state", self.d_state),
            dt_min=dt_min,
            dt_max=dt_max,
            time_scale=real("time_scale", self.time_scale, 1e-6, 1e6),
        )


@dataclass
class S4State(LayerState):
    """State of every channel: one of each conjugate couple, as (re, im). ssm: (b, d, N/2, 2), float32 or float64."""

    kind = "s4"
    ssm: Tensor


class S4(Mixer):
    """Structured state space (DPLR, HiPPO-LegS): linear in time, the same system at every token."""

    Config = S4Config
    State = S4State
    letter = "S"
    recurrent = True
    param_groups: ClassVar = {
        **{name: {"weight_decay": 0.0, "lr_max": 1e-3} for name in ("log_A_real", "A_imag", "P", "B", "log_dt")},
        "D": {"weight_decay": 0.0},
    }
    residual_projections = ("output_linear",)
    precise = ("log_A_real", "A_imag", "P", "log_dt")
    initial_fields = ("dt_min", "dt_max")

    def __init__(self, config: S4Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        couples = self.config.d_state // 2
        self.log_A_real = nn.Parameter(torch.empty(d_model, couples))
        self.A_imag = nn.Parameter(torch.empty(d_model, couples))
        self.P = nn.Parameter(torch.empty(d_model, couples, 2))
        self.B = nn.Parameter(torch.empty(d_model, couples, 2))
        self.C = nn.Parameter(torch.empty(d_model, couples, 2))
        self.D = nn.Parameter(torch.empty(d_model))
        self.log_dt = nn.Parameter(torch.empty(d_model))
        self.output_linear = Linear(d_model, 2 * d_model)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """The same A, B for every channel; C, D and dt of its own."""
        streams = streams or Streams.drawn()
        Lambda, P, B = (x.expand_as(self.B) for x in dplr("legs", self.config.d_state))
        init.fill(self.log_A_real, torch.log(-Lambda[..., 0]))  # Re(Lambda) = -exp(.) stays negative
        init.fill(self.A_imag, Lambda[..., 1])
        init.fill(self.P, P)
        init.fill(self.B, B)
        init.normal(self.C, 0.5**0.5, streams("C"))  # complex N(0, 1): half the variance in each part
        init.normal(self.D, 1.0, streams("D"))
        init.uniform(self.log_dt, math.log(self.config.dt_min), math.log(self.config.dt_max), streams("log_dt"))
        init.linear(self.output_linear, streams, "output_linear")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> S4State:
        dtype = state_dtype(dtype or torch.get_default_dtype())
        return S4State(torch.zeros(batch, self.d_model, self.config.d_state // 2, 2, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t d"], state: S4State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], S4State | None]:
        x, ctx = self.enter(x, state, ctx)
        y, ssm = s4_scan(
            x,
            torch.stack([-self.log_A_real.double().exp(), self.A_imag.double()], dim=-1),
            self.P,
            self.B,
            self.C,
            self.D,
            self.config.time_scale * self.log_dt.double().exp(),
            state=None if state is None else state.ssm,
            lengths=ctx.lengths,
            document=ctx.document,
        )
        y = F.glu(self.output_linear(F.gelu(y)), dim=-1)
        return y, None if state is None else state.advance(ssm=ssm)

    @classmethod
    def cost(cls, config: S4Config, d_model: int) -> Cost:
        """FLOPs as `s4_flops` counts them; computing the kernel is paid once for all rows of a batch."""
        n = config.d_state

        def forward(tokens: int, past: int) -> Flops:
            return linear(tokens, d_model, 2 * d_model) + Flops(*s4_flops(d_model, n, tokens, past > 0))

        return Cost(
            parameters=d_model * (4 * n + 2) + 2 * d_model * (d_model + 1),
            forward=forward,
            state=lambda max_length, itemsize: StateBytes(ssm=d_model * n * max(4, itemsize)),
        )
