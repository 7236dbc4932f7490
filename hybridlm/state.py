"""One cache for every kind of layer: KV slots, convolution inputs and SSM states in one object.

A state is a value that is used once. A call consumes the state it is given and returns the next one; `fork` and
`select` copy. With gradients off the next state takes over the same memory, with gradients on it is a new set of
tensors through which gradients flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from hybridlm.context import Context, Cursor, outside_inference
from hybridlm.errors import StateError, UnsupportedError
from hybridlm.registry import mixers
from hybridlm.sealed import read_sealed, write_sealed

FORMAT = 1  # of saved states
SPENT = "this state was consumed by an earlier call; continue with the state that call returned, or fork() before it"


@dataclass(eq=False)
class LayerState:
    """What one mixer remembers. A subclass is a dataclass whose fields are tensors with the batch first.

    kind: the registry name of the mixer that it belongs to, by which a saved state finds its class again.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.spent = False
        self.held = False  # by a graph: it came out of a call with gradients, which may need it in the backward pass
        self.cursor: Cursor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every field by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def batch(self) -> int:
        """Number of rows."""
        return next(iter(self.tensors().values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def open(self, x: Tensor, max_length: int | None) -> Context:
        """The context of a mixer that is called on its own, without a model: its state keeps the clock."""
        if self.cursor is None:
            with outside_inference():
                self.cursor = Cursor.zeros(self.batch, device=x.device)
        return self.cursor.open(x, max_length=max_length)

    @property
    def in_place(self) -> bool:
        """Whether its memory may be overwritten: gradients are off, and nothing in a graph needs it."""
        held = self.held or any(tensor.requires_grad for tensor in self.tensors().values())
        return not held and not torch.is_grad_enabled()

    def check(self, batch: int) -> None:
        """StateError if this state is spent or has another number of rows."""
        if self.spent:
            raise StateError(SPENT)
        if batch != self.batch:
            raise StateError(f"the state has {self.batch} rows and the input {batch}; use state.select(rows)")

    def advance(self, **tensors: Tensor) -> Self:
        """The next state, with the given tensors; fields not named go over as they are. This one is spent.

        With gradients off the memory of this state is written and handed on; otherwise the new tensors are.
        """
        pairs = {name: (old, tensors.get(name, old)) for name, old in self.tensors().items()}
        successor = type(self)(**{name: _write(*pair, self.in_place) for name, pair in pairs.items()})
        successor.cursor, successor.held, self.spent = self.cursor, torch.is_grad_enabled(), True
        return successor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A state of the same rows with every tensor replaced by change(tensor)."""
        changed = type(self)(**{name: change(tensor) for name, tensor in self.tensors().items()})
        changed.cursor = self.cursor and self.cursor.fork()
        return changed

    def check_rollback(self, count: int) -> None:
        """UnsupportedError unless moving the clock back by `count` tokens is all that it takes to forget them."""
        raise UnsupportedError(
            f"{self.kind}: its state folds the past together and cannot forget {count} tokens exactly; "
            "fork() the state before them, and go on from the fork"
        )


# A mixer's state, or the states of mixers side by side; () for a layer that remembers nothing.
Layer = LayerState | tuple


def _as_rows(rows: Tensor | Sequence[int]) -> Tensor:
    try:
        return torch.as_tensor(rows, dtype=torch.int64 if isinstance(rows, list) and not rows else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"rows: {rows!r}; give a list of row numbers") from error


def _write(old: Tensor, new: Tensor, in_place: bool) -> Tensor:
    if old is new:
        return old
    if in_place:
        return old.copy_(new)
    new = new.to(old.dtype)
    if torch.compiler.is_compiling() or not new.is_inference():  # nothing to ask while tracing
        return new
    with outside_inference():
        return new.clone()  # a state must go on outside inference mode too


def map_layers(layers: Sequence[Layer], change: Callable[[LayerState], LayerState]) -> list[Layer]:
    """Apply change to every LayerState of a list of layers, inside tuples too."""
    return [tuple(map_layers(x, change)) if isinstance(x, tuple) else change(x) for x in layers]


def leaves(layers: Sequence[Layer]) -> list[LayerState]:
    """Every LayerState of a list of layers, in order."""
    return [leaf for x in layers for leaf in (leaves(x) if isinstance(x, tuple) else [x])]


@dataclass(eq=False)
class ModelState:
    """The state of a whole model: one entry a layer of the pattern, and the clock of the rows.

    layers:      a LayerState, a tuple of them for mixers side by side, or () for an MLP alone.
    cursor:      position and document of each row.
    max_length:  the most tokens that a row's document may have.
    fingerprint: of the spec of the model that made it; another model refuses it.
    """

    layers: list[Layer]
    cursor: Cursor
    max_length: int
    fingerprint: str = ""
    spent: bool = field(default=False, init=False)

    @property
    def position(self) -> Tensor:
        """(b,) int64, on the device: valid tokens of each row's current document."""
        return self.cursor.position

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.cursor.position.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of KV, convolution and SSM state; the clock's 16 bytes a row are not counted."""
        return sum(leaf.nbytes for leaf in leaves(self.layers))

    def check(self) -> None:
        """StateError if this state was consumed."""
        if self.spent:
            raise StateError(SPENT)

    def open(self, x: Tensor, valid: Tensor | None = None, segment_ids: Tensor | None = None) -> Context:
        """Start a call on tokens x (b, t): capacity is checked, then the rows move on and this state is spent."""
        ctx = self.cursor.open(x, valid, segment_ids, self.max_length)
        self.spent = True
        return ctx

    def next(self, layers: list[Layer]) -> ModelState:
        """The state after the call that `open` started."""
        return ModelState(layers, self.cursor, self.max_length, self.fingerprint)

    def fork(self) -> ModelState:
        """A copy that shares nothing with this state: either side may go on without the other."""
        return self._copy(torch.clone, self.cursor.fork())

    def detach(self) -> ModelState:
        """A copy cut off from the graph, for truncated backpropagation."""
        return self._copy(lambda tensor: tensor.detach().clone(), self.cursor.fork())

    def select(self, rows: Tensor | Sequence[int]) -> ModelState:
        """A copy with the given rows in the given order, repeats allowed. rows: (r,) integers, or (b,) bool."""
        index = self._rows(rows)
        return self._copy(lambda tensor: tensor.index_select(0, index.to(tensor.device)), self.cursor.select(index))

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> ModelState:
        """Empty all rows, or the given ones, in place; returns self. rows: (r,) integers, or (b,) bool."""
        self.check()
        index = torch.arange(self.batch) if rows is None else self._rows(rows)
        gone = torch.zeros(self.batch, dtype=torch.bool)
        gone[index.cpu()] = True
        gone = gone.to(self.position.device)
        for leaf in leaves(self.layers):
            for name, tensor in leaf.tensors().items():
                row = gone.reshape(-1, *[1] * (tensor.ndim - 1))
                empty = torch.zeros_like(tensor) if len(index) == self.batch else tensor.masked_fill(row, 0)
                setattr(leaf, name, _write(tensor, empty, leaf.in_place))
        self.cursor.reset(gone)
        return self

    def rollback(self, count: int) -> ModelState:
        """Forget the last `count` tokens of every row, exactly, in place; returns self.

        UnsupportedError: a layer cannot do it. StateError: a row's document has fewer tokens, or it would be forgotten
        whole and the one before it, whose tokens are gone, would have to come back. Then nothing changes.
        """
        self.check()
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise StateError(f"rollback: count is {count!r}; it must be an integer, 0 or more")
        self.cursor.check_rollback(count)
        for leaf in leaves(self.layers):
            leaf.check_rollback(count)
        self.cursor.rollback(count)
        return self

    def save(self, path: str | Path) -> None:
        """Write the state to one file, checksummed; `hybridlm.load_state` reads it back bit for bit."""
        self.check()
        tensors = {"position": self.cursor.position, "segment": self.cursor.segment}
        kinds = [_collect(layer, f"layers.{i}", tensors) for i, layer in enumerate(self.layers)]
        about = {
            "format": FORMAT,
            "kinds": kinds,
            "max_length": self.max_length,
            "fingerprint": self.fingerprint,
            "over": self.cursor.over,
        }
        write_sealed(path, tensors, about, StateError)

    def _copy(self, change: Callable[[Tensor], Tensor], cursor: Cursor) -> ModelState:
        self.check()
        with outside_inference():
            layers = map_layers(self.layers, lambda leaf: leaf.map(change))
        return ModelState(layers, cursor, self.max_length, self.fingerprint)

    def _rows(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Row numbers as (r,) int64; StateError if one does not exist."""
        self.check()
        index = _as_rows(rows)
        if index.dtype == torch.bool:
            if index.shape != (self.batch,):
                raise StateError(f"rows: a mask of shape {tuple(index.shape)}; the state has {self.batch} rows")
            index = index.nonzero().squeeze(1)
        if index.ndim != 1 or index.is_floating_point() or index.is_complex():
            raise StateError(f"rows: {rows!r}; give a list of row numbers")
        bad = [row for row in index.tolist() if not 0 <= row < self.batch]
        if bad:
            raise StateError(f"rows: {bad[0]} does not exist; the state has rows 0 to {self.batch - 1}")
        return index.to(torch.int64)


def load_state(path: str | Path, *, device: torch.device | str | None = None) -> ModelState:
    """Read a state that `ModelState.save` wrote, bit for bit.

    StateError: the file is missing, damaged (one flipped bit is enough), or not a state.
    """
    with outside_inference():
        tensors, about = read_sealed(path, StateError)
        tensors = {name: tensor.to("cpu" if device is None else device) for name, tensor in tensors.items()}
    if about.get("format") != FORMAT:
        raise StateError(f"{path}: a state in format {about.get('format')}; this hybridlm reads format {FORMAT}")
    layers = [_restore(kind, f"layers.{i}", tensors) for i, kind in enumerate(about["kinds"])]
    cursor = Cursor(tensors["position"], tensors["segment"], None, about["over"])
    return ModelState(layers, cursor, about["max_length"], about["fingerprint"])


def _collect(layer: Layer, prefix: str, tensors: dict[str, Tensor]) -> str | list:
    """Gather a layer's tensors under its prefix; returns its kind, or a list of kinds for a tuple."""
    if isinstance(layer, tuple):
        return [_collect(part, f"{prefix}.{i}", tensors) for i, part in enumerate(layer)]
    tensors.update({f"{prefix}.{name}": tensor for name, tensor in layer.tensors().items()})
    return layer.kind


def _restore(kind: str | list, prefix: str, tensors: dict[str, Tensor]) -> Layer:
    if isinstance(kind, list):
        return tuple(_restore(part, f"{prefix}.{i}", tensors) for i, part in enumerate(kind))
    own = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] == prefix}
    return mixers.get(kind).State(**own)
