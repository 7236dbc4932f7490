"""Multi-head latent attention: keys and values of all heads are remembered as one short vector a token.

    c_j = norm(W_DKV x_j),    r_j = rot_j(W_KR x_j),    k_j = [W_UK c_j, r_j],    v_j = W_UV c_j        head by head
    q_i = [W_Q x_i, rot_i(W_QR x_i)],    o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(p)) v_j

DeepSeek-V2 (arXiv:2405.04434), section 2.1, eq. 9 to 19 and figure 3; the norms: section 3.1.2. W_UK and W_UV can be
taken to the queries and outputs instead: q . W_UK c = (W_UK^T q) . c. Differs from the paper: no biases, no dropout;
rotary pairs are (i, i + p/2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import flag, real, whole
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.heads import last_document, seen_in_both
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer
from hybridlm.layers.norm import RMSNorm
from hybridlm.ops.attention import attention, cached_attention
from hybridlm.ops.rotary import rotary
from hybridlm.ops.slots import write_slots
from hybridlm.recording import symbolic
from hybridlm.state import LayerState

LONG = 1 << 20  # slots of a cache whose length is not known: next to it a few tokens are few


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Heads, and the widths of what is remembered.

    heads: query heads h; default d_model / 64.
    q_rank: width of the queries' own latent; 0 for queries straight from x.
    kv_rank: width r of the latent from which every head's keys and values are made; default d_model / 4.
    nope_dim: width of a head's queries and keys without positions; default d_model / heads.
    rope_dim: width of its rotated queries, and of the one rotated key that all heads share; even, default half of that.
    v_dim: width of a head's values; default d_model / heads.
    rope: rotary positions; default: only in stacks without a recurrent mixer.
    rope_theta: base of the rotary frequencies.
    """

    heads: int | None = None
    q_rank: int = 0
    kv_rank: int | None = None
    nope_dim: int | None = None
    rope_dim: int | None = None
    v_dim: int | None = None
    rope: bool | None = None
    rope_theta: float = 10000.0

    def resolve(self, d_model: int) -> "LatentConfig":
        """Every default filled in, every shape checked."""
        heads = whole("heads", max(1, d_model // 64) if self.heads is None else self.heads)
        width = max(1, d_model // heads)
        rope_dim = whole("rope_dim", max(2, 2 * (d_model // (4 * heads))) if self.rope_dim is None else self.rope_dim)
        rope = flag("rope", True if self.rope is None else self.rope)
        if rope and rope_dim % 2:
            raise SpecError(
                f"rope_dim: {rope_dim} is odd, and rotary positions turn pairs; "
                f"use {rope_dim + 1} or another even number, or rope: false"
            )
        return replace(
            self,
            heads=heads,
            q_rank=whole("q_rank", self.q_rank, low=0),
            kv_rank=whole("kv_rank", max(1, d_model // 4) if self.kv_rank is None else self.kv_rank),
            nope_dim=whole("nope_dim", width if self.nope_dim is None else self.nope_dim),
            rope_dim=rope_dim,
            v_dim=whole("v_dim", width if self.v_dim is None else self.v_dim),
            rope=rope,
            rope_theta=real("rope_theta", self.rope_theta, 1.0, 1e12),
        )

    @property
    def qk_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.nope_dim + self.rope_dim

    def expanded(self, tokens: int, keys: int) -> int:
        """FLOPs of one head with keys and values made from their latents."""
        made = 2 * keys * self.kv_rank * (self.nope_dim + self.v_dim)
        return made + 2 * tokens * keys * (self.qk_dim + self.v_dim)

    def absorbed(self, tokens: int, keys: int) -> int:
        """FLOPs of one head that attends to the latents themselves."""
        made = 2 * tokens * self.kv_rank * (self.nope_dim + self.v_dim)
        return made + 2 * tokens * keys * (2 * self.kv_rank + self.rope_dim)


@dataclass
class LatentState(LayerState):
    """Latents and rotated keys of a document: slot = position. Compute dtype.

    latent: (b, max_length, r); key: (b, max_length, rope_dim).
    """

    kind = "mla"
    latent: Tensor
    key: Tensor

    def check_rollback(self, count: int) -> None:
        """Slots at and past the clock are never read, so moving the clock back forgets exactly."""


class LatentAttention(Mixer):
    """Multi-head latent attention (DeepSeek): softmax attention over the whole past, with a compressed cache."""

    Config = LatentConfig
    State = LatentState
    letter = "L"
    rolls_back = True
    residual_projections = ("o_proj",)

    def __init__(self, config: LatentConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c = self.config
        if c.q_rank:
            self.q_down = Linear(d_model, c.q_rank, bias=False)
            self.q_norm = RMSNorm(c.q_rank, eps)
        self.q_proj = Linear(c.q_rank or d_model, c.heads * c.qk_dim, bias=False)
        self.kv_down = Linear(d_model, c.kv_rank + c.rope_dim, bias=False)
        self.kv_norm = RMSNorm(c.kv_rank, eps)
        self.k_up = nn.Parameter(torch.empty(c.heads, c.nope_dim, c.kv_rank))
        self.v_up = nn.Parameter(torch.empty(c.heads, c.v_dim, c.kv_rank))
        self.o_proj = Linear(c.heads * c.v_dim, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Every matrix as that of a linear layer; norms at 1."""
        streams = streams or Streams.drawn()
        for name, layer in self.named_children():
            if isinstance(layer, nn.Linear):
                init.linear(layer, streams, name)
            else:
                layer.reset_parameters()
        init.normal(self.k_up, (3 * self.config.kv_rank) ** -0.5, streams("k_up"))
        init.normal(self.v_up, (3 * self.config.kv_rank) ** -0.5, streams("v_up"))

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> LatentState:
        widths = (self.config.kv_rank, self.config.rope_dim)
        return LatentState(*(torch.zeros(batch, max_length, width, device=device, dtype=dtype) for width in widths))

    def capacity(self, state: LatentState) -> int:
        return state.latent.shape[1]

    def forward(
        self, x: Float[Tensor, "b t d"], state: LatentState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], LatentState | None]:
        x, ctx = self.enter(x, state, ctx)
        q, (latent, key) = self.query(x, ctx), self.compress(x, ctx)
        if state is None:
            y = self.attend_heads(q, latent, key, partial(attention, causal=True, document=ctx.document))
        elif ctx.document is None:
            state = self.remember(state, latent, key, ctx)
            if ctx.past:
                latent, key = (cache[:, : ctx.extent].to(q.dtype) for cache in (state.latent, state.key))
                see = partial(cached_attention, positions=ctx.positions, extent=ctx.extent)
                y = self.attend_cache(q, latent, key, see)
            else:
                y = self.attend_heads(q, latent, key, partial(attention, causal=True))
        else:
            held = (cache[:, : ctx.past].to(q.dtype) for cache in (state.latent, state.key))
            both = (torch.cat(pair, dim=1) for pair in zip(held, (latent, key), strict=True))
            y = self.attend_cache(q, *both, partial(attention, mask=seen_in_both(ctx)))
            state = self.remember(state, latent, key, ctx)
        return self.o_proj(rearrange(y, "b t h v -> b t (h v)")), state

    def query(self, x: Tensor, ctx: Context) -> Tensor:
        """(b, t, d) -> (b, t, h, nope_dim + rope_dim), the second part rotated."""
        x = self.q_norm(self.q_down(x)) if self.config.q_rank else x
        q = rearrange(self.q_proj(x), "b t (h p) -> b t h p", h=self.config.heads)
        if not self.config.rope:
            return q
        plain, turned = q.split([self.config.nope_dim, self.config.rope_dim], dim=-1)
        return torch.cat([plain, rotary(turned, ctx.positions, self.config.rope_theta)], dim=-1)

    def compress(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """(b, t, d) -> what is remembered: the latent (b, t, r), and the rotated key (b, t, rope_dim)."""
        latent, key = self.kv_down(x).split([self.config.kv_rank, self.config.rope_dim], dim=-1)
        if self.config.rope:
            key = rotary(key[:, :, None], ctx.positions, self.config.rope_theta).squeeze(2)
        return self.kv_norm(latent), key

    def remember(self, state: LatentState, latent: Tensor, key: Tensor, ctx: Context) -> LatentState:
        """Write the last document's valid tokens to the slots of their positions."""
        caches, keep = (state.latent, state.key), last_document(ctx)
        latent, key = write_slots(caches, (latent, key), ctx.positions, keep, in_place=state.in_place)
        return state.advance(latent=latent, key=key)

    def attend_cache(self, q: Tensor, latent: Tensor, key: Tensor, see: Callable) -> Tensor:
        """In the form that costs less: few queries go to the latents, many have keys and values made for them."""
        sizes = q.shape[1], LONG if symbolic(latent.shape[1]) else latent.shape[1]
        few = self.config.absorbed(*sizes) < self.config.expanded(*sizes)
        return (self.attend_latents if few else self.attend_heads)(q, latent, key, see)

    def attend_heads(self, q: Tensor, latent: Tensor, key: Tensor, see: Callable) -> Tensor:
        """Keys and values of every head, made from the latents (b, s, r) and the one key (b, s, rope_dim). see: how
        queries attend to them, (q, k, v) -> y."""
        k = einsum(latent, self.k_up, "b s r, h n r -> b s h n")
        v = einsum(latent, self.v_up, "b s r, h v r -> b s h v")
        k = torch.cat([k, key[:, :, None].to(k.dtype).expand(-1, -1, self.config.heads, -1)], dim=-1)
        return see(q, k, v)

    def attend_latents(self, q: Tensor, latent: Tensor, key: Tensor, see: Callable) -> Tensor:
        """The same in the space of the latents: they are key and value of all heads at once."""
        plain, turned = q.split([self.config.nope_dim, self.config.rope_dim], dim=-1)
        q = torch.cat([einsum(plain, self.k_up, "b t h n, h n r -> b t h r"), turned], dim=-1)
        k = torch.cat([latent, key], dim=-1)[:, :, None]
        y = see(q, k, latent[:, :, None], scale=self.config.qk_dim**-0.5)
        return einsum(y, self.v_up, "b t h r, h v r -> b t h v")

    @classmethod
    def cost(cls, config: LatentConfig, d_model: int) -> Cost:
        """Without a past the keys and values are made; after one, the form that costs less is counted, as it runs."""
        c = config
        q = (c.q_rank or d_model) * c.heads * c.qk_dim + d_model * c.q_rank
        matrices = q + d_model * (c.kv_rank + c.rope_dim + c.heads * c.v_dim)
        ups = c.heads * c.kv_rank * (c.nope_dim + c.v_dim)

        def forward(tokens: int, past: int) -> Flops:
            pairs = c.expanded(tokens, tokens + past)
            pairs = min(pairs, c.absorbed(tokens, tokens + past)) if past else pairs
            return linear(tokens, matrices, 1) + Flops(matmul=c.heads * pairs)

        return Cost(
            matrices + ups + c.q_rank + c.kv_rank,
            forward,
            lambda max_length, itemsize: StateBytes(kv=(c.kv_rank + c.rope_dim) * max_length * itemsize),
        )
