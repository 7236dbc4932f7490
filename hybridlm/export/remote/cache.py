"""The state of a model as transformers hands a cache around: one object that calls change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache

from hybridlm.context import outside_inference
from hybridlm.errors import StateError, UnsupportedError
from hybridlm.state import Layer, LayerState, ModelState, leaves


class HybridCache(Cache):
    """Keys and values, convolution inputs and recurrent states of every layer: the `past_key_values` of this model.

    capacity: tokens that a row may have before memory is allocated anew; 0: found out on the way.
    state:    what the layers remember; None before the first call.
    """

    def __init__(self, capacity: int = 0):
        super().__init__(layers=[])
        self.capacity = capacity
        self.state: ModelState | None = None
        self._seen = 0  # columns of all calls so far, pads included
        self._solid = 0  # the last columns without a pad in any row

    def begin(self, empty: Callable[[int, int], ModelState], batch: int, tokens: int) -> ModelState:
        """The state for a call on so many tokens, with room for them. empty: (rows, capacity) -> an empty state."""
        if self.state is not None and self.state.batch != batch:
            raise StateError(f"past_key_values has {self.state.batch} rows, and the call {batch}")
        if self.state is None:
            self.state = empty(batch, max(self.capacity, self._seen + tokens))
        elif self._seen + tokens > self.state.max_length:
            self.state = _with_room(self.state, empty(batch, max(2 * self.state.max_length, self._seen + tokens)))
        return self.state

    def end(self, state: ModelState, tokens: int, padded: bool) -> None:
        """Hold the state after the call."""
        self.state, self._seen = state, self._seen + tokens
        self._solid = 0 if padded else self._solid + tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, pads included, as an attention mask has them."""
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows, as beam search asks for."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The same."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        if self.state is not None:
            self._select(torch.arange(self.state.batch).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.select(rows)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens, exactly; a negative number, as transformers has it.

        UnsupportedError: a layer folds its past together, so that nothing can be taken out of it again.
        """
        count = -tokens_to_remove
        if count < 0:
            raise ValueError(f"crop: {tokens_to_remove}; give the number of tokens to forget as a negative one")
        if count > self._solid:
            raise ValueError(f"crop: {count} tokens, but only the last {self._solid} are without pads; forget fewer")
        if count:
            self.state.rollback(count)
            self._seen, self._solid = self._seen - count, self._solid - count

    def reset(self) -> None:
        """Empty, as new."""
        self.state, self._seen, self._solid = None, 0, 0

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` forgets exactly: so with attention over everything, and with nothing else."""
        try:
            for leaf in leaves([] if self.state is None else self.state.layers):
                leaf.check_rollback(1)
        except UnsupportedError:
            return False
        return True

    @property
    def is_initialized(self) -> bool:
        """Whether a call has filled it."""
        return self.state is not None

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first call."""
        return -1 if self.state is None else self.state.batch


def _with_room(state: ModelState, larger: ModelState) -> ModelState:
    """What `state` holds, in the memory of an empty one for more tokens; slots keep their places."""
    state.check()
    with outside_inference():
        layers = [_moved(old, new) for old, new in zip(state.layers, larger.layers, strict=True)]
    return ModelState(layers, state.cursor, larger.max_length)


def _moved(old: Layer, new: Layer) -> Layer:
    if isinstance(old, tuple):
        return tuple(_moved(*pair) for pair in zip(old, new, strict=True))
    tensors = {name: _padded(tensor, new.tensors()[name]) for name, tensor in old.tensors().items()}
    moved: LayerState = type(old)(**tensors)
    moved.cursor, moved.held = old.cursor, old.held
    return moved


def _padded(old: Tensor, new: Tensor) -> Tensor:
    """The old tensor, with the new one's zeros behind it where that is longer."""
    for axis, (few, many) in enumerate(zip(old.shape, new.shape, strict=True)):
        if few < many:
            old = torch.cat([old, new.narrow(axis, few, many - few).to(old.dtype)], dim=axis)
    return old
