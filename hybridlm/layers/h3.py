"""H3, hungry hungry hippos: linear attention whose keys pass a shift and whose products are kept by a diagonal SSM.

    K_t = shift(k)_t + D k_t,    y_t = q_t (ssm(K v^T)_t + D K_t v_t^T)        head by head, K v^T of shape (p, p)
    shift: the last N inputs, read by C.    ssm: h_t = Abar h_{t-1} + Bbar u_t, C h_t, one system a head, as in S4D
    out_t = W_o y_t + b,    [q, k, v] = W u + b

Fu, Dao, Saab, Thomas, Rudra, Re, Hungry Hungry Hippos: Towards Language Modeling with State Space Models (2022,
arXiv:2212.14052): section 3, algorithm 1. Differs from the paper's code: the shift's B is e_1 and stays so; steps work
for every head_dim; channels of the output are in the order of those of the input; no dropout.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import choice, divides, interval, paired, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.diagonal import GROUPS, INITS, DiagonalSystems
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.ops.diagonal_ssm import RULES, Rule
from hybridlm.ops.shift_ssm import shift_flops, shift_ssm
from hybridlm.ops.toeplitz_attention import toeplitz_attention, toeplitz_attention_flops
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class H3Config:
    """Two state space models between three gates.

    d_state: states N of the shift (the last N keys) and of the diagonal system of each head; even.
    head_dim: channels p of a head, a divisor of d_model; 1 multiplies elementwise.
    init: eigenvalues of the diagonal system to begin with: lin, inv, real or legs.
    discretization: of the diagonal system: zoh (the input is held over a step) or bilinear.
    dt_min, dt_max: the step dt of each head is drawn log-uniformly between them; 1 / dt is its memory in tokens.
    """

    d_state: int = 64
    head_dim: int = 1
    init: str = "lin"
    discretization: str = "zoh"
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def resolve(self, d_model: int) -> "H3Config":
        """Every field checked."""
        head_dim = whole("head_dim", self.head_dim)
        divides("head_dim", head_dim, "d_model", d_model)
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=paired("d_state", self.d_state),
            init=choice("init", self.init, INITS),
            discretization=choice("discretization", self.discretization, RULES),
            dt_min=dt_min,
            dt_max=dt_max,
        )


@dataclass
class H3State(LayerState):
    """conv: the last N - 1 keys, (b, d, N - 1), compute dtype.
    ssm: one of each conjugate couple of every head, for every pair of a key and a value channel, as (re, im):
    (b, h, p, p, N/2, 2), float32 or float64."""

    kind = "h3"
    conv: Tensor
    ssm: Tensor


class H3(Mixer):
    """Hungry hungry hippos (H3): shift and diagonal state spaces between multiplicative gates, linear in time."""

    Config = H3Config
    State = H3State
    letter = "H"
    recurrent = True
    param_groups: ClassVar = {
        "shift.D": {"weight_decay": 0.0},
        **{f"ssm.{name}": group for name, group in GROUPS.items()},
    }
    residual_projections = ("out_proj",)
    precise = ("ssm.log_A_real", "ssm.A_imag", "ssm.log_dt")
    initial_fields = ("init", "dt_min", "dt_max")

    def __init__(self, config: H3Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c = self.config
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.shift = ShiftSSM(d_model, c.d_state)
        self.ssm = DiagonalAttention(d_model // c.head_dim, c.d_state)
        self.out_proj = Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """The systems as configured, projections as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            init.linear(getattr(self, name), streams, name)
        self.shift.reset_parameters(streams.at("shift"))
        self.ssm.reset_parameters(c.init, c.dt_min, c.dt_max, streams.at("ssm"))

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> H3State:
        dtype, n, p = dtype or torch.get_default_dtype(), self.config.d_state, self.config.head_dim
        return H3State(
            torch.zeros(batch, self.d_model, n - 1, device=device, dtype=dtype),
            torch.zeros(batch, self.d_model // p, p, p, n // 2, 2, device=device, dtype=state_dtype(dtype)),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: H3State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], H3State | None]:
        x, ctx = self.enter(x, state, ctx)
        x = x.contiguous()  # else torch adds a bias in a step of its own, and rounds once more
        q, k, v = self.q_proj(x), ctx.keep_valid(self.k_proj(x)), self.v_proj(x)
        k, conv = self.shift(k, None if state is None else state.conv, ctx)
        q, k, v = (rearrange(z, "b t (h p) -> b t h p", p=self.config.head_dim) for z in (q, k, v))
        y, ssm = self.ssm(q, k, v, None if state is None else state.ssm, ctx, rule=self.config.discretization)
        y = self.out_proj(rearrange(y, "b t h p -> b t (h p)"))
        return y, None if state is None else state.advance(conv=conv, ssm=ssm)

    @classmethod
    def cost(cls, config: H3Config, d_model: int) -> Cost:
        """FLOPs as `shift_flops` and `toeplitz_attention_flops` count them."""
        n, p = config.d_state, config.head_dim

        def forward(tokens: int, past: int) -> Flops:
            shifted, ffts = shift_flops(d_model, n, tokens, past > 0)
            products, recurrence = toeplitz_attention_flops(tokens, d_model // p, p, n, past > 0)
            return linear(tokens, d_model, 4 * d_model) + Flops(products, shifted + recurrence, ffts)

        return Cost(
            4 * d_model * (d_model + 1) + d_model * (n + 1) + d_model // p * (3 * n + 2),
            forward,
            lambda max_length, itemsize: StateBytes(ssm=d_model * ((n - 1) * itemsize + p * n * max(4, itemsize))),
        )


class ShiftSSM(nn.Module):
    """d shift registers of N inputs, each read by a filter of its own: C (d, N), the present first, and D (d)."""

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        self.C = nn.Parameter(torch.empty(channels, d_state))
        self.D = nn.Parameter(torch.empty(channels))

    def reset_parameters(self, streams: Streams) -> None:
        """C as PyTorch's own default for a convolution with one channel a group; D ~ N(0, 1)."""
        bound = self.C.shape[1] ** -0.5
        init.uniform(self.C, -bound, bound, streams("C"))
        init.normal(self.D, 1.0, streams("D"))

    def forward(
        self, x: Float[Tensor, "b t d"], state: Float[Tensor, "b d n"] | None, ctx: Context
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n"] | None]:
        """x -> y, and the inputs to remember (None without those remembered so far)."""
        return shift_ssm(x, self.C, self.D, state=state, lengths=ctx.lengths, document=ctx.document)


class DiagonalAttention(DiagonalSystems):
    """A system a head, to which every entry of k v^T is an input, and whose outputs q reads."""

    def forward(
        self,
        q: Float[Tensor, "b t h p"],
        k: Float[Tensor, "b t h p"],
        v: Float[Tensor, "b t h p"],
        state: Float[Tensor, "b h p p n 2"] | None,
        ctx: Context,
        *,
        rule: Rule,
    ) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p p n 2"] | None]:
        """q, k, v -> y, and the state after each row's last valid token (None without one)."""
        about = {"state": state, "lengths": ctx.lengths, "document": ctx.document}
        return toeplitz_attention(q, k, v, **self.systems(), rule=rule, **about)
