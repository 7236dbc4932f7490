"""Attention over the whole past, with a cache of keys and values.

    o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(p)) v_j

Vaswani et al. 2017 (arXiv:1706.03762), eq. 1; grouped keys: Ainslie et al. 2023 (arXiv:2305.13245); rotary positions:
Su et al. 2021 (arXiv:2104.09864), eq. 34. Differs from the papers: no biases; keys are stored rotated.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.context import Context
from hybridlm.layers.cost import Cost, StateBytes
from hybridlm.layers.heads import (
    Heads,
    HeadsConfig,
    heads_cost,
    last_document,
    seen_in_both,
)
from hybridlm.ops.attention import attention, cached_attention
from hybridlm.ops.slots import write_slots
from hybridlm.state import LayerState


@dataclass
class KVState(LayerState):
    """Keys and values of a document: slot = position. k, v: (b, max_length, hk, p), compute dtype."""

    kind = "attention"
    k: Tensor
    v: Tensor

    def check_rollback(self, count: int) -> None:
        """Slots at and past the clock are never read, so moving the clock back forgets exactly."""


class Attention(Heads):
    """Softmax attention over the whole past (grouped or multi-query heads, RoPE or NoPE, QK-norm)."""

    Config = HeadsConfig
    State = KVState
    letter = "A"
    rolls_back = True

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> KVState:
        shape = (batch, max_length, self.config.kv_heads, self.config.head_dim)
        return KVState(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def capacity(self, state: KVState) -> int:
        return state.k.shape[1]

    def forward(
        self, x: Float[Tensor, "b t d"], state: KVState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], KVState | None]:
        x, ctx = self.enter(x, state, ctx)
        q, k, v = self.project(x, ctx.positions)
        if state is None:
            y = self.attend_call(q, k, v, ctx)
        elif ctx.document is None:
            state = self.remember(state, k, v, ctx)
            y = self.attend_cache(q, state, ctx) if ctx.past else self.attend_call(q, k, v, ctx)
        else:
            y = self.attend_both(q, k, v, state, ctx)
            state = self.remember(state, k, v, ctx)
        return self.merge(y), state

    def remember(self, state: KVState, k: Tensor, v: Tensor, ctx: Context) -> KVState:
        """Write the last document's valid tokens to the slots of their positions."""
        k, v = write_slots((state.k, state.v), (k, v), ctx.positions, last_document(ctx), in_place=state.in_place)
        return state.advance(k=k, v=v)

    def attend_call(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
        """Nothing came before: each document attends to itself. Pads stand on the right, out of everyone's sight."""
        return attention(q, k, v, causal=True, document=ctx.document)

    def attend_cache(self, q: Tensor, state: KVState, ctx: Context) -> Tensor:
        """One document, whose every key now lies in the slot of its position."""
        return cached_attention(q, state.k, state.v, ctx.positions, extent=ctx.extent)

    def attend_both(self, q: Tensor, k: Tensor, v: Tensor, state: KVState, ctx: Context) -> Tensor:
        """Document 0 sees the cache, and every document its own tokens of this call."""
        k = torch.cat([state.k[:, : ctx.past].to(k.dtype), k], dim=1)
        v = torch.cat([state.v[:, : ctx.past].to(v.dtype), v], dim=1)
        return attention(q, k, v, mask=seen_in_both(ctx))

    @classmethod
    def cost(cls, config: HeadsConfig, d_model: int) -> Cost:
        """Every query meets every key of the call and of the cache: t (t + past) pairs."""
        cost = heads_cost(config, d_model, lambda tokens, past: tokens * (tokens + past))
        width = 2 * config.kv_heads * config.head_dim
        return replace(cost, state=lambda max_length, itemsize: StateBytes(kv=width * max_length * itemsize))
