"""The two programs, as modules: a state's tensors go in and come out one by one, and nothing is changed in place.

Every way that a layer takes is settled while it is traced, and most depend on how many tokens there are. So prefill
takes its tokens in pieces of one size, in a loop that is part of the program: the last piece is filled up with pads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hybridlm.compose.model import HybridLM
from hybridlm.context import Cursor
from hybridlm.export.program.interface import sketch
from hybridlm.export.program.real import Real
from hybridlm.state import Layer, LayerState, ModelState, leaves, map_layers


class Advance(nn.Module):
    """inputs (b, t), valid (b, t) or None, position, the tensors of every layer -> x (b, t, d), and the same after."""

    def __init__(self, model: HybridLM):
        super().__init__()
        self.model = model
        self.layers: list[Layer] = sketch(model)

    def forward(self, inputs: Tensor, valid: Tensor | None, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        cursor = Cursor(position.clone(), torch.zeros_like(position), None, [])
        state = ModelState(self._filled(iter(tensors)), cursor, sys.maxsize, self.model.spec.fingerprint)
        x, state = self.model.hidden(inputs, state, valid=valid)
        return x, state.position, *(t for leaf in leaves(state.layers) for t in leaf.tensors().values())

    def weights(self) -> dict[str, Tensor]:
        """All that `forward` reads besides its inputs, by name."""
        return self.state_dict(keep_vars=True)

    def _filled(self, tensors: Iterator[Tensor]) -> list[Layer]:
        def fill(empty: LayerState) -> LayerState:
            state = type(empty)(**{name: next(tensors) for name in empty.tensors()})
            state.held = True  # what goes in is the caller's, and is not written over
            return state

        return map_layers(self.layers, fill)


class Program(nn.Module):
    """What the two have in common: `Advance`, or what it was rewritten as, and what is answered from its vectors."""

    def __init__(self, advance: Advance | Real):
        super().__init__()
        self.advance = advance

    def answer(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x (b, t, d) -> logits or numbers, as the model's head has them."""
        model = self.advance.model
        return model.readout(x, model.logits, None, valid)[0]


class Step(Program):
    """One token a row, (b, 1), and a state -> its answer and the next state."""

    def forward(self, inputs: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x, *state = self.advance(inputs, None, *state)
        return self.answer(x, None), *state


class Prefill(Program):
    """Tokens (b, t), which of them are real (b, t), and a state -> their answers and the next state."""

    def __init__(self, advance: Advance | Real, piece: int):
        super().__init__(advance)
        self.piece = piece

    def forward(self, inputs: Tensor, valid: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        b, t = inputs.shape[:2]
        model = self.advance.model
        x = model.embed.weight.new_zeros(b, t + self.piece, model.spec.d_model)
        filled = (F.pad(v, (0, 0) * (v.ndim - 2) + (0, self.piece)) for v in (inputs, valid))
        x, *state = self._in_pieces(x, *filled, *state)
        return self.answer(x[:, :t].contiguous(), valid), *state

    def _in_pieces(self, x: Tensor, inputs: Tensor, valid: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The loop. What it reads and does not change is handed in beside what it changes, the weights too."""
        weights = self.advance.weights()
        changed = torch.zeros((), dtype=torch.int64), x, *state
        kept = inputs, valid, torch.arange(self.piece), *weights.values()

        def more(start: Tensor, x: Tensor, *others: Tensor) -> Tensor:
            return start < x.shape[1] - self.piece

        def read(start: Tensor, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            state, (inputs, valid, places, *values) = others[: len(changed) - 2], others[len(changed) - 2 :]
            here = start + places
            given = inputs.index_select(1, here), valid.index_select(1, here), *state
            y, *state = functional_call(self.advance, dict(zip(weights, values, strict=True)), given)
            return start + self.piece, x.index_copy(1, here, y), *map(_own, state)

        return torch.ops.higher_order.while_loop(more, read, changed, kept)[1:]


def _own(tensor: Tensor) -> Tensor:
    """In memory of its own, laid out as what goes into a loop: it must come out the same."""
    return tensor.clone(memory_format=torch.contiguous_format)
