"""A whole model as the subject of the laws: the scene goes in where the embeddings would."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.build import build
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.context import Context
from hybridlm.ops.backend import use
from hybridlm.state import ModelState
from hybridlm.testing.result import EXACT
from hybridlm.testing.subject import Subject, randomise


class Whole(Subject):
    """A model: x (b, t, d) stands in for the embeddings, the outputs are logits.

    Of another head the outputs are its answers, token by token and never pooled, with the hidden vectors beside them:
    an answer of one or two numbers can be nearly zero, and an error relative to that says nothing.
    """

    def __init__(
        self,
        model: HybridLM | ModelSpec | Mapping[str, Any] | str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        tokens: int = 24,
        rows: int = 4,
    ):
        module = copy.deepcopy(model) if isinstance(model, HybridLM) else build(model)
        randomise(module, seed=2)
        self.spec: ModelSpec = module.spec
        super().__init__(module.spec.pattern, module.eval(), module.spec.d_model, dtype, backend, tokens, rows)

    @property
    def limit(self) -> float:
        """Errors of layers add up like independent ones."""
        return EXACT[self.dtype] * max(1.0, math.sqrt(len(self.module.blocks) / 4))

    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        return self.module.init_state(batch, self.room if max_length is None else max_length)

    def run(
        self, x: Tensor, state: ModelState | None = None, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> tuple[Tensor, ModelState | None]:
        with embedded(self.module, Context.of(x, valid).align(x)):
            return self.read(self.blank(*x.shape[:2]).to(x.device), state, valid, ids)

    def read(
        self,
        inputs: Tensor,
        state: ModelState | None = None,
        valid: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """A call on real inputs: token ids (b, t), or signals (b, t, channels)."""
        with use(self.backend):
            if self.spec.head != "lm":
                y, state = self.module.hidden(inputs, state, valid=valid, segment_ids=segment_ids)
                return torch.cat([self.module.logits(y), y], dim=-1), state
            out = self.module(inputs, state, valid=valid, segment_ids=segment_ids)
        return out.logits, out.state

    def blank(self, batch: int, tokens: int) -> Tensor:
        """Inputs of zeros."""
        if self.spec.reads_tokens:
            return torch.zeros(batch, tokens, dtype=torch.int64)
        return torch.zeros(batch, tokens, self.spec.input.channels, dtype=self.dtype)

    def inputs(self, batch: int, tokens: int, seed: int) -> Tensor:
        """Random inputs."""
        blank, generator = self.blank(batch, tokens), torch.Generator().manual_seed(seed)
        if self.spec.reads_tokens:
            return torch.randint(self.spec.vocab_size, blank.shape, generator=generator)
        return torch.randn(blank.shape, generator=generator, dtype=torch.float64).to(self.dtype)


@contextmanager
def embedded(model: HybridLM, x: Tensor) -> Iterator[None]:
    """Within the block, the embedding of any tokens is x (b, t, d), aligned."""
    handle = model.embed.register_forward_hook(lambda *_: x)
    try:
        yield
    finally:
        handle.remove()
