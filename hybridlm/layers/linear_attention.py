"""Linear attention: a matrix a head remembers every value under its key, and fades.

    S_t = S_{t-1} Diag(a_t) + v_t k_t^T,    y_t = S_t q_t / sqrt(n)                  head by head, S of shape (p, n)
    q = phi(W_q x),  k = phi(W_k x),  v = W_v x;    a_t: 1, a number of the head, or of each key channel
    out_t = W_o (RMSNorm(y_t) * silu(W_g x_t)),     or, normalised, y_t / (z_t^T q_t) with z_t = a_t * z_{t-1} + k_t

a = 1, phi = elu + 1, normalised, no gate: Katharopoulos et al., Transformers are RNNs (2020, arXiv:2006.16236), eq. 16
to 20. a = 1 - 2^(-5-i) in head i: Sun et al., RetNet (2023, arXiv:2307.08621), eq. 6 to 8. a from x: Yang et al., Gated
Linear Attention (2023, arXiv:2312.06635), eq. 3 and section 4.4, which is the default: one number a head is in mamba2.
Differs from the papers: q and k are not rotated (RetNet's xPos), and RMSNorm is RetNet's norm too.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import choice, flag, shared_among_heads, whole
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.norm import RMSNorm
from hybridlm.ops.linear_attention import linear_attention, linear_attention_flops
from hybridlm.state import LayerState

DECAYS = ("none", "fixed", "head", "channel")
FEATURES = {
    "identity": lambda x: x,
    "relu": F.relu,
    "elu1": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()),  # elu(x) + 1, without losing digits of e^x
}
RANK, TEMPERATURE = 16, 16.0  # of the decay a channel: a = sigmoid(...)^(1 / 16) starts near 1
STEADY = 1e-3  # least eps of the norm: a first y is (q k) v, and where q k is about 0, its rounding must not decide
LEAST = 1e-6  # stands beside z^T q, which may be 0


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    """Heads with a matrix for a memory.

    heads: heads h; default the largest divisor of d_model up to d_model / 64.
    head_dim: width p of a value; default d_model / heads.
    d_key: width n of a query and a key; default head_dim / 2, as in GLA.
    decay: none; fixed, 1 - 2^(-5-i) for head i; head, from x, one a head; channel, from x, one a key channel.
    feature_map: phi of queries and keys: identity, relu, or elu1 (elu + 1).
    normalizer: divide by z^T q, which takes a feature map that is never negative; otherwise RMSNorm over p.
    gate: multiply by silu(W_g x) before the output projection.
    chunk: tokens that are computed as attention at a time; changes speed, not results.
    """

    heads: int | None = None
    head_dim: int | None = None
    d_key: int | None = None
    decay: str = "channel"
    feature_map: str = "identity"
    normalizer: bool = False
    gate: bool = True
    chunk: int = 64

    def resolve(self, d_model: int) -> "LinearAttentionConfig":
        """Every default filled in, every shape checked."""
        heads, head_dim = shared_among_heads(d_model, self.heads, self.head_dim)
        feature_map = choice("feature_map", self.feature_map, FEATURES)
        if flag("normalizer", self.normalizer) and feature_map == "identity":
            raise SpecError(
                "normalizer: True divides by z^T q, which feature_map = 'identity' lets be 0; use elu1 or relu"
            )
        return replace(
            self,
            heads=heads,
            head_dim=head_dim,
            d_key=whole("d_key", max(1, head_dim // 2) if self.d_key is None else self.d_key, high=4096),
            decay=choice("decay", self.decay, DECAYS),
            feature_map=feature_map,
            gate=flag("gate", self.gate),
            chunk=whole("chunk", self.chunk, low=2, high=4096),
        )


@dataclass
class LinearAttentionState(LayerState):
    """ssm: S of every head, and z as its last row if normalised, (b, h, p or p + 1, n), float32 or float64."""

    kind = "linear_attention"
    ssm: Tensor


class LinearAttention(Mixer):
    """Attention without softmax, with a decay from the input (GLA; also RetNet, and no decay): a matrix for a state."""

    Config = LinearAttentionConfig
    State = LinearAttentionState
    letter = "l"
    recurrent = True
    residual_projections = ("o_proj",)

    def __init__(self, config: LinearAttentionConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c = self.config
        keys, values = c.heads * c.d_key, c.heads * c.head_dim
        self.q_proj = Linear(d_model, keys, bias=False)
        self.k_proj = Linear(d_model, keys, bias=False)
        self.v_proj = Linear(d_model, values, bias=False)
        self.decay_proj = _decay_projection(c, d_model)
        self.norm = None if c.normalizer else RMSNorm(c.head_dim, max(eps, STEADY))
        self.g_proj = Linear(d_model, values, bias=False) if c.gate else None
        self.o_proj = Linear(values, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Projections as every linear layer, so that a decay from x starts at about 2^(-1 / 16); norm at 1."""
        streams = streams or Streams.drawn()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                init.linear(module, streams, name)
        if self.norm is not None:
            self.norm.reset_parameters()

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> LinearAttentionState:
        c, dtype = self.config, dtype or torch.get_default_dtype()
        shape = (batch, c.heads, c.head_dim + c.normalizer, c.d_key)
        return LinearAttentionState(torch.zeros(shape, device=device, dtype=state_dtype(dtype)))

    def forward(
        self, x: Float[Tensor, "b t d"], state: LinearAttentionState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], LinearAttentionState | None]:
        x, ctx = self.enter(x, state, ctx)
        q, k = (self.features(project(x)) for project in (self.q_proj, self.k_proj))
        y, ssm = linear_attention(
            q * self.config.d_key**-0.5,
            ctx.keep_valid(k),  # a pad writes nothing ...
            self.values(self.v_proj(x)),
            self.log_decay(x, ctx),  # ... and fades nothing
            state=None if state is None else state.ssm,
            document=ctx.document,
            chunk=self.config.chunk,
        )
        y = rearrange(self.normalized(y), "b t h p -> b t (h p)").to(x.dtype)
        y = self.o_proj(y if self.g_proj is None else y * F.silu(self.g_proj(x)))
        return y, None if state is None else state.advance(ssm=ssm)

    def features(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t h n"]:
        """phi, for the heads apart."""
        return FEATURES[self.config.feature_map](rearrange(x, "b t (h n) -> b t h n", n=self.config.d_key))

    def values(self, v: Float[Tensor, "b t c"]) -> Tensor:
        """Values of the heads apart, in the dtype of the state; beside them a 1 that makes keys sum up to z."""
        v = rearrange(v, "b t (h p) -> b t h p", p=self.config.head_dim).to(state_dtype(v.dtype))
        return F.pad(v, (0, 1), value=1.0) if self.config.normalizer else v

    def log_decay(self, x: Float[Tensor, "b t d"], ctx: Context) -> Tensor | None:
        """log a: None, (b, t, h) or (b, t, h, n)."""
        c, wide = self.config, state_dtype(x.dtype)
        if c.decay == "none":
            return None
        if c.decay == "fixed":
            heads = torch.arange(c.heads, device=x.device, dtype=wide)
            return ctx.keep_valid(torch.log1p(-torch.exp2(-5 - heads)).expand(*x.shape[:2], -1))
        a = F.logsigmoid(self.decay_proj(x).to(wide)) / TEMPERATURE
        return ctx.keep_valid(a if c.decay == "head" else rearrange(a, "b t (h n) -> b t h n", n=c.d_key))

    def normalized(self, y: Float[Tensor, "b t h p"]) -> Tensor:
        """Each head to size 1, or by z^T q, which stands at the end of y."""
        return self.norm(y) if self.norm is not None else y[..., :-1] / (y[..., -1:] + LEAST)

    @classmethod
    def knows_order(cls, config: LinearAttentionConfig) -> bool:
        return config.decay != "none"

    @classmethod
    def cost(cls, config: LinearAttentionConfig, d_model: int) -> Cost:
        """FLOPs of linear attention as `linear_attention_flops` counts them; z^T q is one more value."""
        c = config
        keys, values, rows = c.heads * c.d_key, c.heads * c.head_dim, c.head_dim + c.normalizer
        low = {"head": d_model * c.heads, "channel": RANK * (d_model + keys)}.get(c.decay, 0)
        matrices = d_model * (2 * keys + (2 + c.gate) * values) + low
        vectors = {"head": c.heads, "channel": keys}.get(c.decay, 0) + (0 if c.normalizer else c.head_dim)

        def forward(tokens: int, past: int) -> Flops:
            sizes = (c.heads, rows, c.heads, c.d_key, c.chunk)
            heart = linear_attention_flops(tokens, *sizes, by_channel=c.decay == "channel")
            return linear(tokens, matrices, 1) + Flops(*heart)

        return Cost(
            matrices + vectors,
            forward,
            lambda max_length, itemsize: StateBytes(ssm=c.heads * rows * c.d_key * max(4, itemsize)),
        )


def _decay_projection(config: LinearAttentionConfig, d_model: int) -> nn.Module | None:
    """From x to the logits of a: one a head, or by way of a few numbers, one a key channel."""
    if config.decay == "head":
        return Linear(d_model, config.heads)
    if config.decay == "channel":
        return nn.Sequential(Linear(d_model, RANK, bias=False), Linear(RANK, config.heads * config.d_key))
    return None
