"""S5, the simplified state space layer: one system with many inputs and outputs instead of one system a channel.

    h_t = Abar h_{t-1} + Bbar u_t,    y_t = C h_t + D u_t,    A = diag(Lambda), B (P, d), C (d, P)
    Abar = e^(dt Lambda),    Bbar = (Abar - 1) / Lambda B        each of the P states has a step dt of its own
    out_t = W_out (g_t * sigmoid(W_gate g_t + b)),    g_t = gelu(y_t)

Smith, Warrington, Linderman, Simplified State Space Layers for Sequence Modeling (2022, arXiv:2208.04933):
sections 2.2, 3 and 4, appendix B. The activation is `half_glu1` of the paper's code. Differs from it: W_out, which the
code has not, writes to the residual stream; no dropout, no bidirectional form.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import divides, interval, largest_divisor, paired, real, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.ops.hippo import diagonal
from hybridlm.ops.s5_scan import s5_flops, s5_scan
from hybridlm.state import LayerState

SLOWEST = -1e-4
"""The largest Re(Lambda): whatever is learned, the system forgets."""


@dataclass(frozen=True, kw_only=True)
class S5Config:
    """One diagonal system for all channels.

    d_state: states P of the layer, even, as they come in conjugate couples; default d_model, down to a multiple of 16.
    blocks: number J of HiPPO-LegS systems of P/J states that Lambda begins as, a divisor of P/2; default 4, or more
        where P > 256, so that each has about 64 states.
    dt_min, dt_max: the step dt of each state is drawn log-uniformly between them; 1 / dt is its memory in tokens.
    time_scale: what every dt is multiplied with: 2 where a signal comes at half the rate of training.
    """

    d_state: int | None = None
    blocks: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    time_scale: float = 1.0

    def resolve(self, d_model: int) -> "S5Config":
        """Every default filled in, every field checked."""
        states = paired("d_state", _as_many_as(d_model) if self.d_state is None else self.d_state)
        blocks = largest_divisor(states // 2, max(4, states // 64)) if self.blocks is None else self.blocks
        divides("blocks", whole("blocks", blocks), "d_state / 2", states // 2)
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        time_scale = real("time_scale", self.time_scale, 1e-6, 1e6)
        return replace(self, d_state=states, blocks=blocks, dt_min=dt_min, dt_max=dt_max, time_scale=time_scale)


def _as_many_as(channels: int) -> int:
    """States of a layer of this width by default: as many, down to a multiple of 16, which has blocks of like size."""
    unit = 16 if channels >= 16 else 2
    return min(max(2, channels // unit * unit), 4096)


@dataclass
class S5State(LayerState):
    """State of the layer: one of each conjugate couple, as (re, im). ssm: (b, P/2, 2), float32 or float64."""

    kind = "s5"
    ssm: Tensor


class S5(Mixer):
    """Simplified state space (S5, MIMO): linear in time, a parallel scan, the same system at every token."""

    Config = S5Config
    State = S5State
    letter = "V"
    recurrent = True
    param_groups: ClassVar = {
        **{name: {"weight_decay": 0.0, "lr_max": 1e-3} for name in ("A_real", "A_imag", "B", "log_dt")},
        "D": {"weight_decay": 0.0},
    }
    residual_projections = ("out_proj",)
    precise = ("A_real", "A_imag", "log_dt")
    initial_fields = ("blocks", "dt_min", "dt_max")

    def __init__(self, config: S5Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        couples = self.config.d_state // 2
        self.A_real = nn.Parameter(torch.empty(couples))
        self.A_imag = nn.Parameter(torch.empty(couples))
        self.B = nn.Parameter(torch.empty(couples, d_model, 2))
        self.C = nn.Parameter(torch.empty(d_model, couples, 2))
        self.D = nn.Parameter(torch.empty(d_model))
        self.log_dt = nn.Parameter(torch.empty(couples))
        self.gate_proj = Linear(d_model, d_model)
        self.out_proj = Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """J times the normal part of LegS, V diag(Lambda) V^*; V^-1 B and C V of Gaussian matrices B and C.

        V is unitary and holds both of each couple, so V^-1 B of B ~ N(0, 1 / d) has independent parts N(0, 1 / 2d), and
        C V of a C with parts N(0, 1 / P) has parts N(0, 1 / P): they are drawn as such.
        """
        streams, c = streams or Streams.drawn(), self.config
        Lambda = diagonal("legs", c.d_state // c.blocks).repeat(c.blocks, 1)
        init.fill(self.A_real, Lambda[:, 0])
        init.fill(self.A_imag, Lambda[:, 1])
        init.normal(self.B, (2 * self.d_model) ** -0.5, streams("B"))
        init.normal(self.C, c.d_state**-0.5, streams("C"))
        init.normal(self.D, 1.0, streams("D"))
        init.uniform(self.log_dt, math.log(c.dt_min), math.log(c.dt_max), streams("log_dt"))
        init.linear(self.gate_proj, streams, "gate_proj")
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> S5State:
        dtype = state_dtype(dtype or torch.get_default_dtype())
        return S5State(torch.zeros(batch, self.config.d_state // 2, 2, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t d"], state: S5State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], S5State | None]:
        x, ctx = self.enter(x, state, ctx)
        y, ssm = s5_scan(
            x,
            torch.stack([self.A_real.double().clamp(max=SLOWEST), self.A_imag.double()], dim=-1),
            self.B,
            self.C,
            self.D,
            self.config.time_scale * self.log_dt.double().exp(),
            state=None if state is None else state.ssm,
            lengths=ctx.lengths,
            document=ctx.document,
        )
        y = F.gelu(y)
        y = self.out_proj(y * torch.sigmoid(self.gate_proj(y)))
        return y, None if state is None else state.advance(ssm=ssm)

    @classmethod
    def cost(cls, config: S5Config, d_model: int) -> Cost:
        """FLOPs of the scan as `s5_flops` counts them."""
        p = config.d_state
        return Cost(
            parameters=2 * p * d_model + 3 * p // 2 + 2 * d_model + 2 * d_model**2,
            forward=lambda tokens, past: (
                linear(tokens, d_model, 2 * d_model) + Flops(*s5_flops(d_model, p, tokens, past > 0))
            ),
            state=lambda max_length, itemsize: StateBytes(ssm=p * max(4, itemsize)),
        )
