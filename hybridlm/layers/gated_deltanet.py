"""Gated DeltaNet: linear attention whose memory fades, and replaces what a key held instead of adding to it.

    S_t = a_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    y_t = S_t q_t / sqrt(n)    head by head, S (p, n)
    [q, k, v] = silu(conv(W x)),  q and k of length 1;    a = exp(-exp(A) softplus(W_a x + dt)),  beta = sigmoid(W_b x)
    out_t = W_out (RMSNorm(y_t) * silu(W_z x_t))

Yang, Kautz, Hatamizadeh, Gated Delta Networks (2024, arXiv:2412.06464): eq. 10 and figure 1; chunks as in Yang et al.,
DeltaNet (2024, arXiv:2406.06484), section 3. Keys may be fewer than heads, as in Qwen3-Next, whose layer this is, with
the parameters of Qwen3.5's. Differs from the paper: chunks are solved by forward substitution, not inverted.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import divides, flag, shared_among_heads, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.norm import RMSNorm
from hybridlm.layers.short_conv import ShortConv, short_conv_cost
from hybridlm.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_flops
from hybridlm.ops.norm import l2_norm
from hybridlm.ops.steps import softplus
from hybridlm.state import LayerState

UNIT = 1e-6  # beside the squared length of a query or key, which may be 0
DT = (1e-3, 1e-1)  # initial steps, as Mamba-2's


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """Heads with a matrix for a memory.

    heads: heads h; default the largest divisor of d_model up to d_model / 64.
    key_heads: heads g of queries and keys, a divisor of heads; default heads.
    head_dim: width p of a value; default d_model / heads.
    d_key: width n of a query and a key; default head_dim.
    d_conv: width k of the short convolution; 1 sees the token alone.
    negative_eigenvalues: beta up to 2, not 1: what a key held may change its sign, which counting modulo 2 needs.
    gate: multiply by silu(W_z x) before the output projection.
    chunk: tokens that are solved for at a time; changes speed, not results.
    """

    heads: int | None = None
    key_heads: int | None = None
    head_dim: int | None = None
    d_key: int | None = None
    d_conv: int = 4
    negative_eigenvalues: bool = False
    gate: bool = True
    chunk: int = 64

    def resolve(self, d_model: int) -> "GatedDeltaNetConfig":
        """Every default filled in, every shape checked."""
        heads, head_dim = shared_among_heads(d_model, self.heads, self.head_dim)
        key_heads = whole("key_heads", heads if self.key_heads is None else self.key_heads)
        divides("key_heads", key_heads, "heads", heads)
        return replace(
            self,
            heads=heads,
            key_heads=key_heads,
            head_dim=head_dim,
            d_key=whole("d_key", head_dim if self.d_key is None else self.d_key, high=4096),
            d_conv=whole("d_conv", self.d_conv, high=64),
            negative_eigenvalues=flag("negative_eigenvalues", self.negative_eigenvalues),
            gate=flag("gate", self.gate),
            chunk=whole("chunk", self.chunk, low=2, high=4096),
        )

    @property
    def widths(self) -> list[int]:
        """Of q, k and v, all heads together."""
        return [self.key_heads * self.d_key, self.key_heads * self.d_key, self.heads * self.head_dim]


@dataclass
class GatedDeltaNetState(LayerState):
    """conv: the last k - 1 inputs of the convolution, (b, 2 g n + h p, k - 1), compute dtype.
    ssm: S of every head, (b, h, p, n), float32 or float64."""

    kind = "gated_deltanet"
    conv: Tensor
    ssm: Tensor


class GatedDeltaNet(Mixer):
    """Linear attention with a decay and the delta rule: a matrix for a state, each key of which is written anew."""

    Config = GatedDeltaNetConfig
    State = GatedDeltaNetState
    letter = "G"
    recurrent = True
    param_groups: ClassVar = {name: {"weight_decay": 0.0} for name in ("A_log", "dt_bias")}
    residual_projections = ("out_proj",)

    def __init__(self, config: GatedDeltaNetConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c, values = self.config, self.config.widths[2]
        self.in_proj_qkv = Linear(d_model, sum(c.widths), bias=False)
        self.conv1d = ShortConv(sum(c.widths), c.d_conv, bias=False)
        self.in_proj_a = Linear(d_model, c.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(c.heads))
        self.A_log = nn.Parameter(torch.empty(c.heads))
        self.in_proj_b = Linear(d_model, c.heads, bias=False)
        self.norm = RMSNorm(c.head_dim, eps)
        self.in_proj_z = Linear(d_model, values, bias=False) if c.gate else None
        self.out_proj = Linear(values, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """A and steps as Mamba-2's, the rest as every linear layer."""
        streams = streams or Streams.drawn()
        for name, module in self.named_children():
            if isinstance(module, nn.Linear):
                init.linear(module, streams, name)
        self.conv1d.reset_parameters(streams.at("conv1d"))
        init.steps(self.dt_bias, *DT, streams("dt_bias"))
        init.rates(self.A_log, streams("A_log"))
        self.norm.reset_parameters()

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> GatedDeltaNetState:
        c, dtype = self.config, dtype or torch.get_default_dtype()
        shape = (batch, c.heads, c.head_dim, c.d_key)
        return GatedDeltaNetState(
            torch.zeros(batch, sum(c.widths), c.d_conv - 1, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=state_dtype(dtype)),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: GatedDeltaNetState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], GatedDeltaNetState | None]:
        x, ctx = self.enter(x, state, ctx)
        conv, ssm, in_place = (None, None, False) if state is None else (state.conv, state.ssm, state.in_place)
        qkv, conv = self.conv1d(self.in_proj_qkv(x), conv, ctx, in_place)
        q, k, v = self.split(qkv)
        log_a, beta = self.gates(x)
        y, ssm = gated_delta_rule(
            l2_norm(q, UNIT) * self.config.d_key**-0.5,
            l2_norm(k, UNIT),
            v,
            ctx.keep_valid(log_a),  # a pad fades nothing ...
            ctx.keep_valid(beta),  # ... and writes nothing
            state=ssm,
            document=ctx.document,
            chunk=self.config.chunk,
        )
        y = rearrange(self.norm(y), "b t h p -> b t (h p)")
        y = self.out_proj(y if self.in_proj_z is None else y * F.silu(self.in_proj_z(x)))
        return y, None if state is None else state.advance(conv=conv, ssm=ssm)

    def split(self, qkv: Float[Tensor, "b t c"]) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (b, t, g, n), v (b, t, h, p)."""
        q, k, v = qkv.split(self.config.widths, dim=-1)
        q, k = (rearrange(x, "b t (g n) -> b t g n", n=self.config.d_key) for x in (q, k))
        return q, k, rearrange(v, "b t (h p) -> b t h p", p=self.config.head_dim)

    def gates(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b t h"]]:
        """log a and beta."""
        wide = state_dtype(x.dtype)
        dt = softplus(self.in_proj_a(x).to(wide) + self.dt_bias.to(wide))
        beta = torch.sigmoid(self.in_proj_b(x).to(wide))
        return -torch.exp(self.A_log.to(wide)) * dt, 2 * beta if self.config.negative_eigenvalues else beta

    @classmethod
    def cost(cls, config: GatedDeltaNetConfig, d_model: int) -> Cost:
        """FLOPs of the delta rule as `gated_delta_rule_flops` counts them."""
        c, channels, values = config, sum(config.widths), config.widths[2]
        matrices = d_model * (channels + 2 * c.heads + (1 + c.gate) * values)

        def forward(tokens: int, past: int) -> Flops:
            heart = gated_delta_rule_flops(tokens, c.heads, c.head_dim, c.key_heads, c.d_key, c.chunk)
            return linear(tokens, matrices, 1) + Flops(*heart)

        return short_conv_cost(channels, c.d_conv, bias=False) + Cost(
            matrices + 2 * c.heads + c.head_dim,
            forward,
            lambda max_length, itemsize: StateBytes(ssm=values * c.d_key * max(4, itemsize)),
        )
