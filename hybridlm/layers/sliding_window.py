"""Attention over the last `window` tokens, with a ring of keys and values that does not grow.

    o_i = sum_{i - window < j <= i} softmax_j(q_i . k_j / sqrt(p)) v_j          slot(j) = j mod min(window, max_length)

Beltagy et al. 2020 (arXiv:2004.05150), section 3.1; Jiang et al. 2023 (Mistral, arXiv:2310.06825), section 2.
Differs from the papers: no biases; keys are stored rotated.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.context import Context
from hybridlm.layers.cost import Cost, StateBytes
from hybridlm.layers.heads import Heads, HeadsConfig, heads_cost, last_document
from hybridlm.ops.attention import cached_attention, window_attention
from hybridlm.ops.attention.window import block_size
from hybridlm.ops.slots import write_slots
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class WindowConfig(HeadsConfig):
    """Heads, and a window.

    window: how many tokens a query sees, itself included.
    """

    window: int = 1024

    def resolve(self, d_model: int) -> "WindowConfig":
        whole("window", self.window)
        return super().resolve(d_model)


@dataclass
class RingState(LayerState):
    """The last keys and values of a document. k, v: (b, min(window, max_length), hk, p), compute dtype."""

    kind = "sliding_window"
    k: Tensor
    v: Tensor


class SlidingWindow(Heads):
    """Softmax attention over a window of the past, whose cache does not grow with the context."""

    Config = WindowConfig
    State = RingState
    letter = "W"

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> RingState:
        shape = (batch, min(self.config.window, max_length), self.config.kv_heads, self.config.head_dim)
        return RingState(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def capacity(self, state: RingState) -> int | None:
        """A ring shorter than the window was made for documents no longer than itself."""
        return state.k.shape[1] if state.k.shape[1] < self.config.window else None

    def forward(
        self, x: Float[Tensor, "b t d"], state: RingState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], RingState | None]:
        x, ctx = self.enter(x, state, ctx)
        q, k, v = self.project(x, ctx.positions)
        if state is None:
            y = self.attend_call(q, k, v, ctx)
        elif x.shape[1] == 1 and ctx.document is None:
            state = self.remember(state, k, v, ctx)
            y = self.attend_ring(q, state, ctx)
        else:
            y = self.attend_both(q, k, v, state, ctx) if ctx.past else self.attend_call(q, k, v, ctx)
            state = self.remember(state, k, v, ctx)
        return self.merge(y), state

    def remember(self, state: RingState, k: Tensor, v: Tensor, ctx: Context) -> RingState:
        """Write the last document's last valid tokens, as many as the ring holds, each to its slot."""
        ring, keep = state.k.shape[1], last_document(ctx)
        if keep is not None:
            end = (ctx.positions * keep).amax(dim=1, keepdim=True)
            keep = keep & (ctx.positions > end - ring)
        k, v, positions = (k, v, ctx.positions) if keep is not None else (x[:, -ring:] for x in (k, v, ctx.positions))
        k, v = write_slots((state.k, state.v), (k, v), positions % ring, keep, in_place=state.in_place)
        return state.advance(k=k, v=v)

    def attend_call(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
        """Nothing came before: each document attends to itself."""
        return window_attention(q, k, v, size=self.config.window, document=ctx.document)

    def attend_ring(self, q: Tensor, state: RingState, ctx: Context) -> Tensor:
        """One query, whose key is in the ring by now and took the place of the one that left the window."""
        return cached_attention(q, state.k, state.v, ctx.positions, extent=ctx.extent)

    def attend_both(self, q: Tensor, k: Tensor, v: Tensor, state: RingState, ctx: Context) -> Tensor:
        """[ring in order, call]: document 0 sees both, the documents that begin here only themselves."""
        ring, window = state.k.shape[1], self.config.window
        ago = torch.arange(-ring, 0, device=q.device)
        stored = ctx.positions[:, :1] + ago  # positions of the ring's keys, oldest first
        rows = torch.arange(q.shape[0], device=q.device)[:, None]
        k = torch.cat([state.k[rows, stored % ring].to(k.dtype), k], dim=1)
        v = torch.cat([state.v[rows, stored % ring].to(v.dtype), v], dim=1)
        seen = torch.cat([stored >= 0, torch.ones_like(ctx.positions, dtype=torch.bool)], dim=1)
        document = ctx.document
        if document is not None:
            document = torch.cat([torch.zeros_like(stored), document], dim=1)
        return window_attention(q, k, v, size=window, seen=seen, document=document)

    @classmethod
    def cost(cls, config: WindowConfig, d_model: int) -> Cost:
        """Blocks of queries, each against the window before it and itself; one query against the ring.

        The ring is that of a state whose max_length is past + tokens.
        """
        width = 2 * config.kv_heads * config.head_dim

        def pairs(tokens: int, past: int) -> int:
            ring = min(config.window, past + tokens) if past else 0
            if tokens == 1 and past:
                return ring
            size = min(config.window, ring + tokens)
            if size == tokens and not past:
                return tokens * tokens
            block = block_size(tokens, size)
            return -(-tokens // block) * block * (size + block)

        cost = heads_cost(config, d_model, pairs)
        return replace(
            cost, state=lambda max_length, itemsize: StateBytes(kv=width * min(config.window, max_length) * itemsize)
        )
