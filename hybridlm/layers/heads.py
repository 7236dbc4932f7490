"""What attention over everything and attention over a window have in common: heads, and their projections."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlm.checks import divides, flag, nearest_divisors, real, whole
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer
from hybridlm.layers.norm import RMSNorm
from hybridlm.ops.attention import causal_in_document
from hybridlm.ops.rotary import rotary


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Heads of attention.

    heads: query heads h; default d_model / 64, or the nearest smaller number that divides d_model into even widths.
    kv_heads: key and value heads hk, a divisor of heads; default heads. 1 is multi-query attention.
    head_dim: width p of a head; default d_model / heads.
    rope: rotary positions; default: only in stacks without a recurrent mixer.
    rope_theta: base of the rotary frequencies.
    qk_norm: RMSNorm over p on queries and keys, before the rotation.
    rope_dim: how many channels of a head are rotated, the first ones; default all.
    """

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rope: bool | None = None
    rope_theta: float = 10000.0
    qk_norm: bool = False
    rope_dim: int | None = None

    def resolve(self, d_model: int):
        """Every default filled in, every shape checked."""
        heads = whole("heads", _default_heads(d_model) if self.heads is None else self.heads)
        kv_heads = whole("kv_heads", heads if self.kv_heads is None else self.kv_heads)
        divides("kv_heads", kv_heads, "heads", heads)
        rope = flag("rope", True if self.rope is None else self.rope)
        head_dim = whole("head_dim", _default_head_dim(d_model, heads) if self.head_dim is None else self.head_dim)
        rope_dim = self._rope_dim(rope, head_dim)
        theta = real("rope_theta", self.rope_theta, 1.0, 1e12)
        return replace(
            self,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            rope_theta=theta,
            qk_norm=flag("qk_norm", self.qk_norm),
            rope_dim=rope_dim,
        )

    def _rope_dim(self, rope: bool, head_dim: int) -> int | None:
        """What is rotated, if it is not all of a head."""
        if self.rope_dim is None:
            if rope and head_dim % 2:
                raise SpecError(
                    f"head_dim: {head_dim} is odd, and rotary positions turn pairs; "
                    f"use {head_dim + 1} or another even number, or rope: false"
                )
            return None
        if not rope:
            raise SpecError(f"rope_dim: {self.rope_dim!r}, but rope: false turns nothing; leave it out")
        if whole("rope_dim", self.rope_dim, high=head_dim) % 2:
            raise SpecError(f"rope_dim: {self.rope_dim} is odd, and rotary positions turn pairs; use an even number")
        return self.rope_dim if self.rope_dim < head_dim else None


def _default_heads(d_model: int) -> int:
    """About d_model / 64 heads of equal, even width."""
    most = max(1, d_model // 64)
    return next((h for h in range(most, 0, -1) if d_model % h == 0 and d_model // h % 2 == 0), 1)


def _default_head_dim(d_model: int, heads: int) -> int:
    if d_model % heads and heads > 1:
        near = nearest_divisors(d_model, heads)
        raise SpecError(f"heads: {heads} does not divide d_model = {d_model}; use {near}, or give head_dim as well")
    return max(1, d_model // heads - (d_model // heads % 2 if heads == 1 else 0))


class Heads(Mixer):
    """Projections to queries, keys and values and back. Abstract: what attends to what is a subclass's matter."""

    residual_projections: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(self, config: HeadsConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c = self.config
        self.q_proj = Linear(d_model, c.heads * c.head_dim, bias=False)
        self.k_proj = Linear(d_model, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = Linear(d_model, c.kv_heads * c.head_dim, bias=False)
        self.q_norm = RMSNorm(c.head_dim, eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, eps) if c.qk_norm else nn.Identity()
        self.o_proj = Linear(c.heads * c.head_dim, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Projections as every linear layer; norms at 1."""
        streams = streams or Streams.drawn()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            init.linear(getattr(self, name), streams, name)
        if self.config.qk_norm:
            self.q_norm.reset_parameters()
            self.k_norm.reset_parameters()

    def project(self, x: Float[Tensor, "b t d"], positions: Int[Tensor, "b t"]) -> tuple[Tensor, Tensor, Tensor]:
        """x -> queries (b, t, h, p), keys and values (b, t, hk, p), normalised and rotated as configured."""
        p = self.config.head_dim
        q, k, v = (rearrange(f(x), "b t (h p) -> b t h p", p=p) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope:
            q, k = self.turned(q, positions), self.turned(k, positions)
        return q, k, v

    def turned(self, x: Float[Tensor, "b t h p"], positions: Int[Tensor, "b t"]) -> Float[Tensor, "b t h p"]:
        """Rotated by their positions, in the channels that are."""
        theta, width = self.config.rope_theta, self.config.rope_dim
        if width is None:
            return rotary(x, positions, theta)
        return torch.cat([rotary(x[..., :width], positions, theta), x[..., width:]], dim=-1)

    def merge(self, y: Float[Tensor, "b t h p"]) -> Float[Tensor, "b t e"]:
        """Heads -> the residual stream."""
        return self.o_proj(rearrange(y, "b t h p -> b t (h p)"))


def last_document(ctx: Context) -> Tensor | None:
    """(b, t) mask of the valid tokens of each row's last document; None: all of them."""
    if ctx.document is None:
        return ctx.valid
    last = ctx.document == ctx.document[:, -1:]
    return last if ctx.valid is None else last & ctx.valid


def seen_in_both(ctx: Context) -> Tensor:
    """(b, t, past + t) mask over [slots, call]: document 0 sees its cache, and every document itself."""
    slots = torch.arange(ctx.past, device=ctx.positions.device)
    stored = slots < ctx.positions[:, :1, None]  # a row's first token of document 0 stands right behind its cache
    in_cache = stored & (ctx.document == 0)[:, :, None]
    return torch.cat([in_cache, causal_in_document(ctx.document)], dim=2)


def heads_cost(config: HeadsConfig, d_model: int, pairs) -> Cost:
    """Cost without the state. pairs: (tokens, past) -> number of query-key pairs that are computed."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    norms = 2 * config.head_dim if config.qk_norm else 0
    matrices = d_model * (2 * q + 2 * kv)

    def forward(tokens: int, past: int) -> Flops:
        return linear(tokens, matrices, 1) + Flops(matmul=4 * pairs(tokens, past) * q)

    return Cost(matrices + norms, forward)
