"""A token at a time, each model through its own cache, without the sampling around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import hybridlm as hl
from benchmarks.architecture import Architecture, relative
from benchmarks.contest import Entry
from benchmarks.timing import seconds

CHECKED = 256
"""Tokens whose logits are compared."""


@torch.no_grad()
def same_logits(arch: Architecture, weights: dict[str, Tensor], model: nn.Module, logits: Callable) -> float:
    """The error of the first row's logits in the mode of inference."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, arch.vocab_size, (1, CHECKED), generator=generator)
    model.eval()
    return relative(logits(ids)[0], arch.truth(weights, ids[0]))


def decoder(model: nn.Module, calls: dict, ids: Tensor, new: int) -> Entry:
    """The mean of `new` single steps after the prompt, whose reading is not timed."""
    model.eval()
    step = _ours if isinstance(model, hl.HybridLM) else _theirs

    @torch.inference_mode()
    def one(device: str) -> float:
        write = step(model, ids, new)
        return seconds(write, device) / new

    return Entry(lambda: one("cpu"), seconds=one)


def _ours(model: hl.HybridLM, ids: Tensor, new: int) -> Callable[[], None]:
    x, state = model.hidden(ids, model.init_state(len(ids), ids.shape[1] + new))
    first = model.logits(x[:, -1]).argmax(-1, keepdim=True)

    def write() -> None:
        token, cache = first, state
        for _ in range(new):
            out = model(token, state=cache)
            token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.state

    return write


def _theirs(model: nn.Module, ids: Tensor, new: int) -> Callable[[], None]:
    out = model(ids, use_cache=True, logits_to_keep=1)
    first, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def write() -> None:
        token = first
        for _ in range(new):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)

    return write
