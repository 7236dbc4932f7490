"""Mamba-3: a state that turns as well as decays, and takes in this token and the one before it; no convolution.

    H_t = e^{dt A} R(dt theta) (H_{t-1} + (1 - l) dt x_{t-1} B_{t-1}^T) + l dt x_t B_t^T,    y_t = H_t C_t + D x_t
    [z, x, B, C, dt, A, l, theta] = W_in u,    dt = softplus(dt + b),    A = -softplus(A),    l = sigmoid(l)
    B = RMSNorm(B) + b_B,    C = RMSNorm(C) + b_C,    theta = pi tanh(theta),    out_t = W_out (y_t * silu(z_t))

Lahoti et al., Mamba-3 (2026, arXiv:2603.15569v1): sections 3.1 (the trapezoid; dt, A, l and theta are those of step t),
3.2 (R turns pairs of states: complex numbers) and 3.4 (the block). One input and one output a head (SISO). Follows the
paper and the code of mamba_ssm up to release 2.3.2; later code has another function for A (1 + a, or 1 / (1 - a) below
0). Differs from both: H is kept in the frame of its last token, so that no angle is kept beside it. Nothing of MIMO,
and no norm before the output projection, which the code has as options.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import inner_heads, interval, real, whole
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.norm import RMSNorm
from hybridlm.ops.split import split
from hybridlm.ops.steps import softplus
from hybridlm.ops.trapezoidal_ssd import Memory, trapezoidal_ssd, trapezoidal_ssd_flops
from hybridlm.state import LayerState

LEAST_RATE = 1e-4  # of -A: what forgets nothing would never be moved again


@dataclass(frozen=True, kw_only=True)
class Mamba3Config:
    """A matrix-valued state (P, N) a head, a part of which turns.

    d_state: states N of a channel, the width of B and C.
    head_dim: channels P of a head, a divisor of expand * d_model; default the largest up to 64.
    expand: channels of the inner stream, as a multiple of d_model; expand * d_model is a whole number.
    n_groups: groups of heads that share B and C up to their biases, a divisor of the number of heads.
    rope_fraction: part of the states that turns, in pairs: 0.5, 1, or 0 for none.
    chunk: tokens that are computed as attention at a time; changes speed, not results.
    dt_min, dt_max: the initial step dt of each head is drawn log-uniformly between them; 1 / dt is its memory.
    """

    d_state: int = 128
    head_dim: int | None = None
    expand: float = 2
    n_groups: int = 1
    rope_fraction: float = 0.5
    chunk: int = 64
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def resolve(self, d_model: int) -> "Mamba3Config":
        """Every default filled in, every shape checked."""
        expand, head_dim, n_groups = inner_heads(d_model, self.expand, self.head_dim, self.n_groups)
        fraction = real("rope_fraction", self.rope_fraction, 0, 1)
        if fraction not in (0, 0.5, 1):
            raise SpecError(f"rope_fraction: {fraction} is none of 0, 0.5 and 1")
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=whole("d_state", self.d_state, low=1 if fraction == 0 else round(2 / fraction), high=4096),
            head_dim=head_dim,
            expand=expand,
            n_groups=n_groups,
            rope_fraction=fraction,
            chunk=whole("chunk", self.chunk, low=2, high=4096),
            dt_min=dt_min,
            dt_max=dt_max,
        )

    @property
    def angles(self) -> int:
        """Pairs of states that turn."""
        return int(self.d_state * self.rope_fraction) // 2

    def heads(self, d_model: int) -> int:
        """Number of heads h."""
        return round(self.expand * d_model) // self.head_dim

    def widths(self, d_model: int) -> list[int]:
        """Rows of the input projection: z, x, B, C, dt, A, l, theta."""
        inner, shared, heads = round(self.expand * d_model), self.n_groups * self.d_state, self.heads(d_model)
        return [inner, inner, shared, shared, heads, heads, heads, self.angles]


@dataclass
class Mamba3State(LayerState):
    """ssm: H of every head, (b, h, P, N), float32 or float64.
    key: the last token's B, its bias added, (b, h, N), float32 or float64. value: its x, (b, h, P), compute dtype."""

    kind = "mamba3"
    ssm: Tensor
    key: Tensor
    value: Tensor


class Mamba3(Mixer):
    """Selective state space that turns and decays (Mamba-3, SISO): linear in time, tracks states, no convolution."""

    Config = Mamba3Config
    State = Mamba3State
    letter = "T"
    recurrent = True
    param_groups: ClassVar = {name: {"weight_decay": 0.0} for name in ("dt_bias", "B_bias", "C_bias", "D")}
    residual_projections = ("out_proj",)
    initial_fields = ("dt_min", "dt_max")

    def __init__(self, config: Mamba3Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c, heads = self.config, self.config.heads(d_model)
        self.in_proj = Linear(d_model, sum(c.widths(d_model)), bias=False)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.B_norm, self.C_norm = RMSNorm(c.d_state, eps), RMSNorm(c.d_state, eps)
        self.B_bias = nn.Parameter(torch.empty(heads, c.d_state))
        self.C_bias = nn.Parameter(torch.empty(heads, c.d_state))
        self.D = nn.Parameter(torch.empty(heads))
        self.out_proj = Linear(heads * c.head_dim, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Step sizes spread over [dt_min, dt_max], biases of B and C at 1, the rest as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        init.linear(self.in_proj, streams, "in_proj")
        init.steps(self.dt_bias, c.dt_min, c.dt_max, streams("dt_bias"))
        self.B_norm.reset_parameters()
        self.C_norm.reset_parameters()
        for parameter in (self.B_bias, self.C_bias, self.D):  # biases of 1: at first, a state that nothing selects
            init.fill(parameter, torch.ones(parameter.shape))
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> Mamba3State:
        c, heads, dtype = self.config, len(self.D), dtype or torch.get_default_dtype()
        return Mamba3State(
            torch.zeros(batch, heads, c.head_dim, c.d_state, device=device, dtype=state_dtype(dtype)),
            torch.zeros(batch, heads, c.d_state, device=device, dtype=state_dtype(dtype)),
            torch.zeros(batch, heads, c.head_dim, device=device, dtype=dtype),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: Mamba3State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], Mamba3State | None]:
        x, ctx = self.enter(x, state, ctx)
        z, x, B, C, dt, A, trap, theta = split(self.in_proj(x), self.config.widths(self.d_model))
        x = rearrange(x, "b t (h p) -> b t h p", p=self.config.head_dim)
        dt, A, trap = self.step(dt, A, trap)
        dt = ctx.keep_valid(dt)  # a step of size 0 passes over a pad
        y, memory = trapezoidal_ssd(
            x,
            dt,
            A,
            trap,
            math.pi * torch.tanh(theta.to(dt.dtype)).unsqueeze(2) * dt.unsqueeze(3),
            self.spread(self.B_norm(B.unflatten(2, (-1, self.config.d_state))), self.B_bias),
            self.spread(self.C_norm(C.unflatten(2, (-1, self.config.d_state))), self.C_bias),
            state=None if state is None else Memory(**state.tensors()),
            lengths=ctx.lengths,
            document=ctx.document,
            chunk=self.config.chunk,
        )
        y = rearrange(y + self.D.to(y.dtype)[:, None] * x, "b t h p -> b t (h p)")
        y = self.out_proj(y * F.silu(z))
        return y, None if state is None else state.advance(**memory._asdict())

    def step(self, dt: Float[Tensor, "b t h"], A: Float[Tensor, "b t h"], trap: Float[Tensor, "b t h"]):
        """The step's size, the rate of decay and the weight of the new token, in at least float32."""
        wide = state_dtype(dt.dtype)
        dt = softplus(dt.to(wide) + self.dt_bias.to(wide))
        return dt, -softplus(A.to(wide)).clamp(min=LEAST_RATE), torch.sigmoid(trap.to(wide))

    def spread(self, v: Float[Tensor, "b t g n"], bias: Float[Tensor, "h n"]) -> Float[Tensor, "b t h n"]:
        """From groups to heads, each with a bias of its own, in at least float32."""
        wide = state_dtype(v.dtype)
        return repeat(v.to(wide), "b t g n -> b t (g r) n", r=len(bias) // v.shape[2]) + bias.to(wide)

    @classmethod
    def cost(cls, config: Mamba3Config, d_model: int) -> Cost:
        """FLOPs of the heart as `trapezoidal_ssd_flops` counts them, and D x."""
        c, heads = config, config.heads(d_model)
        d_inner = heads * c.head_dim
        matrices = d_model * (sum(c.widths(d_model)) + d_inner)

        def forward(tokens: int, past: int) -> Flops:
            matmul, scan = trapezoidal_ssd_flops(tokens, heads, c.head_dim, c.d_state, c.angles, c.chunk)
            return linear(tokens, matrices, 1) + Flops(matmul, scan + 2 * tokens * d_inner)

        def state(max_length: int, itemsize: int) -> StateBytes:
            return StateBytes(ssm=heads * (c.head_dim + 1) * c.d_state * max(4, itemsize) + d_inner * itemsize)

        return Cost(matrices + heads * (2 * c.d_state + 2) + 2 * c.d_state, forward, state)
