"""What a step of decoding reads and writes: tensors that stay where they are, so that a recording finds them there."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hybridlm.context import outside_inference
from hybridlm.errors import UnsupportedError
from hybridlm.infer.sampling import Sampler
from hybridlm.recording import recording
from hybridlm.state import LayerState, ModelState, leaves, map_layers

BLOCK = 64  # steps between two visits of the host, which takes tokens away and brings numbers to draw with


class Recorder(Protocol):
    """What runs steps so that they can be recorded, and records them."""

    def warm(self, step: Callable[[], None]) -> None:
        """Run it as it will be recorded: kernels are compiled and tuned, libraries set up."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does the same work when it is called. Nothing is run now."""


@dataclass(eq=False)
class Rig:
    """The state of a batch that writes, and all else that a step reads and writes, in tensors that stay where they are.

    state:   what the rows remember.
    last:    (b, 1) int64, each row's last token.
    fresh:   (b, 1) bool, the rows whose last token the state has not read.
    running: (b,) bool, the rows that have not stopped.
    counts:  (b,) int64, new tokens of each row; written where rows may stop.
    sound:   (b,) bool, the rows whose logits have been finite.
    seen:    (b, v + 1) bool, tokens that occurred, those of pads in the last column; None: the sampler does not ask.
    uniform: (BLOCK, b) float64, numbers to draw with; None: it draws none.
    tokens:  (b, BLOCK) int64, what was chosen.
    slot:    (1,) int64, the column of `tokens` and row of `uniform` whose turn it is.
    stop:    (n,) int64, the tokens that stop a row, filled up with -1.

    For recording: key, what it serves; mark, of the model that it was recorded with; prompts, where those of a length
    are read from; met, the lengths that were read before; calls, how often each step was done; replays, the recordings.
    """

    state: ModelState
    last: Tensor
    fresh: Tensor
    running: Tensor
    counts: Tensor
    sound: Tensor
    seen: Tensor | None
    uniform: Tensor | None
    tokens: Tensor
    slot: Tensor
    stop: Tensor
    key: Hashable = None
    mark: Any = None
    recorder: Recorder | None = None
    prompts: dict[tuple[int, bool], tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    calls: dict[Hashable, int] = field(default_factory=dict)
    replays: dict[Hashable, Callable[[], None]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: ModelState, vocab_size: int, sampler: Sampler, stops: int) -> Rig:
        """A rig around a state, with room for `stops` tokens that stop a row."""
        b, device = state.batch, state.position.device
        with outside_inference():
            whole = {"dtype": torch.int64, "device": device}
            seen = torch.zeros(b, vocab_size + 1, dtype=torch.bool, device=device) if sampler.remembers else None
            draws = None if sampler.greedy else torch.zeros(BLOCK, b, dtype=torch.float64, device=device)
            return cls(
                state,
                last=torch.zeros(b, 1, **whole),
                fresh=torch.zeros(b, 1, dtype=torch.bool, device=device),
                running=torch.ones(b, dtype=torch.bool, device=device),
                counts=torch.zeros(b, **whole),
                sound=torch.ones(b, dtype=torch.bool, device=device),
                seen=seen,
                uniform=draws,
                tokens=torch.zeros(b, BLOCK, **whole),
                slot=torch.zeros(1, **whole),
                stop=torch.full((stops,), -1, **whole),
            )

    def clear(self, stop: list[int]) -> None:
        """Everything but the state as for a new text."""
        for empty in (self.last, self.fresh, self.counts, self.slot, self.seen):
            if empty is not None:
                empty.zero_()
        self.running.fill_(True)
        self.sound.fill_(True)
        self.stop.copy_(torch.tensor(stop + [-1] * (len(self.stop) - len(stop))))

    def prompt(self, length: int, padded: bool) -> tuple[Tensor, Tensor | None]:
        """Where a prompt of this length is read from by what is recorded: ids, and valid where it is padded."""
        if (length, padded) not in self.prompts:
            with outside_inference():
                ids = self.last.new_zeros(self.state.batch, length)
                self.prompts[length, padded] = ids, torch.zeros_like(ids, dtype=torch.bool) if padded else None
        return self.prompts[length, padded]

    def run(self, key: Hashable, step: Callable[[], None], *, fresh: bool = False) -> None:
        """Do a step: the first time as it will be recorded, then from the recording.

        step: works on this rig's tensors alone. fresh: the state is empty before it.
        UnsupportedError: it cannot be recorded, and nothing has happened.
        """
        seen = self.calls.get(key, 0)
        self.calls[key] = seen + 1
        if seen == 0:
            with recording(fresh=fresh):
                self.recorder.warm(step)
            return
        if key not in self.replays:
            with recording(fresh=fresh):
                self.replays[key] = self._record(step)
        self.replays[key]()

    def _record(self, step: Callable[[], None]) -> Callable[[], None]:
        try:
            return self.recorder.record(step)
        except RuntimeError as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(f"cuda_graph: a step of this model cannot be recorded: {why}") from error

    def forget(self) -> None:
        """Free what was recorded."""
        self.calls.clear()
        self.replays.clear()


def again(state: ModelState) -> ModelState:
    """The same state, in the same memory and by the same clock, as if no call had consumed it."""
    layers = map_layers(state.layers, lambda leaf: _revived(leaf))
    return ModelState(layers, state.cursor, state.max_length, state.fingerprint)


def _revived(leaf: LayerState) -> LayerState:
    revived = type(leaf)(**leaf.tensors())
    revived.cursor = leaf.cursor
    return revived


def require_same_memory(before: ModelState, after: ModelState) -> None:
    """UnsupportedError unless the step wrote the state in place, as a replay has to find it there."""
    for old, new in zip(leaves(before.layers), leaves(after.layers), strict=True):
        for name, tensor in new.tensors().items():
            if tensor.data_ptr() != old.tensors()[name].data_ptr():
                raise UnsupportedError(f"cuda_graph: {old.kind} does not update its state {name!r} in place")
