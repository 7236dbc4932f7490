"""A block as the model calls it: in one go, or with all that is inside computed again in the backward pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridlm.context import Context
from hybridlm.layers.router import RouterRecord
from hybridlm.ops.backend import preferred, use
from hybridlm.state import Layer, map_layers

Called = tuple[Tensor, Layer | None, Tensor | None, list[RouterRecord] | None]


def call(block: nn.Module, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None) -> Called:
    """block(x, state, ctx, aside), and what it wrote into a journal of its own, if ctx has one.

    So a block compiles to the same code wherever it stands, and what is computed again writes nothing twice.
    """
    ctx = replace(ctx, journal=None if ctx.journal is None else [])
    return *block(x, state, ctx, aside), ctx.journal


def recomputed(block: nn.Module, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None) -> Called:
    """The same, keeping only x, aside and the state: activation checkpointing. Chen et al. 2016 (arXiv:1604.06174).

    Random numbers are drawn as before, and `auto` means the same backend. A state is used once, so each computation
    gets it anew, on the same tensors, which nothing overwrites while gradients are on.
    """
    if not torch.is_grad_enabled():
        return call(block, x, state, ctx, aside)
    backend = preferred()

    def again(x: Tensor, aside: Tensor | None) -> Called:
        with nullcontext() if torch.compiler.is_compiling() else use(backend):  # what is traced has chosen for good
            return call(block, x, None if state is None else _anew(state), ctx, aside)

    return checkpoint(again, x, aside, use_reentrant=False)


def _anew(layer: Layer) -> Layer:
    """The layer's state, unspent, on the same tensors."""
    return map_layers([layer], lambda state: state.map(lambda tensor: tensor))[0]
