"""What a layer needs to know of the batch besides x: which tokens are real, which document each belongs to, and where.

Two things are settled here once, so that no layer has to think of them:

* **Padding is compacted at the model's door.** `valid` may put pads on either side, or between tokens. `align` moves
  each row's valid tokens to the left, `restore` puts the outputs back. Inside, pads are always on the right.
* **Documents are numbered from the state.** In `document`, 0 is the document that the incoming state holds and 1, 2,
  ... are those that begin in this call. What a layer must do is the same for all: never look across a change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridlm.errors import StateError
from hybridlm.recording import fresh, recorded


@dataclass(frozen=True)
class Context:
    """One call's view of its tokens, after `align`.

    positions: (b, t) int64, the offset of each token in its own document: its RoPE offset and its cache slot.
    lengths:   (b,) int64, valid tokens of each row in this call; None: all t.
    valid:     (b, t) bool, the same as a prefix mask; None: all.
    document:  (b, t) int64, non-decreasing; 0 continues the state, a pad repeats the last valid token's; None: all 0.
    past:      host int, the most slots that any row fills before this call (an upper bound).
    extent:    host int, the same after this call.
    order:     (b, t) int64, what `align` gathers by; None: nothing moves. mask: (b, t) bool, `valid` as it was given.
    embeddings: (b, t, d), aligned, what entered the stack; None: no layer asks.
    journal:   a list to which layers add records of the call (`RouterRecord`); None: nobody reads them.
    """

    positions: Tensor
    lengths: Tensor | None = None
    valid: Tensor | None = None
    document: Tensor | None = None
    past: int = 0
    extent: int = 0
    order: Tensor | None = None
    mask: Tensor | None = None
    embeddings: Tensor | None = None
    journal: list | None = None

    @classmethod
    def of(cls, x: Tensor, valid: Tensor | None = None, segment_ids: Tensor | None = None) -> Context:
        """The context of a call without a state. x: (b, t, ...); valid (b, t) bool; segment_ids (b, t) integers."""
        nowhere = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        ctx, _, _ = _read(x, valid, segment_ids, nowhere, nowhere)
        return ctx

    def align(self, x: Tensor) -> Tensor:
        """(b, t, ...) as given -> the same with each row's valid tokens first and zeros after them."""
        return self.keep_valid(x if self.order is None else _take(x, self.order))

    def restore(self, y: Tensor) -> Tensor:
        """(b, t, ...) aligned -> every output at its token's place, zeros at the pads."""
        if self.mask is None:
            return y
        return _zero_where_not(self.mask, y if self.order is None else _take(y, self.order.argsort(dim=1)))

    def keep_valid(self, x: Tensor) -> Tensor:
        """x (b, t, ...) with zeros at the pads."""
        return x if self.valid is None else _zero_where_not(self.valid, x)

    def carried(self, state: Tensor) -> Tensor:
        """(b, ...) -> the same with zeros in the rows whose last document began in this call."""
        if self.document is None:
            return state
        return _zero_where_not(self.document[:, -1] == 0, state)


@dataclass
class Cursor:
    """Where each row stands: the one clock of a state, moved on once a call by `open`.

    position: (b,) int64 on the device, valid tokens of the row's current document.
    segment:  (b,) int64 on the device, that document's id. Rows start in document 0.
    known:    position, as host integers, so that capacity is checked without waiting for the device; None after
              recorded calls, which cannot count on the host: what replays them may do so, by `count`.
    over:     whether the row's document began over another one.
    """

    position: Tensor
    segment: Tensor
    known: list[int] | None
    over: list[bool]

    @classmethod
    def zeros(cls, batch: int, *, device: torch.device | str | None = None) -> Cursor:
        """Every row at the start of document 0."""
        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(position, torch.zeros_like(position), [0] * batch, [False] * batch)

    @property
    def lengths(self) -> list[int]:
        """position, as host integers."""
        if self.known is None:
            self.known = self.position.tolist()
        return self.known

    def fork(self) -> Cursor:
        """A copy that shares nothing."""
        with outside_inference():
            return Cursor(self.position.clone(), self.segment.clone(), list(self.lengths), list(self.over))

    def copy_(self, other: Cursor) -> None:
        """Stand where the other one does."""
        self.position.copy_(other.position)
        self.segment.copy_(other.segment)
        self.known, self.over = list(other.lengths), list(other.over)

    def select(self, rows: Tensor) -> Cursor:
        """The given rows, in the given order. rows: (r,) int64."""
        index, rows = rows.to(self.position.device), rows.tolist()
        known, over = [self.lengths[row] for row in rows], [self.over[row] for row in rows]
        with outside_inference():
            return Cursor(self.position[index], self.segment[index], known, over)

    def reset(self, rows: Tensor) -> None:
        """Rows back to the start of document 0. rows: (b,) bool."""
        self.position.masked_fill_(rows, 0)
        self.segment.masked_fill_(rows, 0)
        gone = rows.tolist()
        self.known = [0 if empty else length for empty, length in zip(gone, self.lengths, strict=True)]
        self.over = [before and not empty for empty, before in zip(gone, self.over, strict=True)]

    def restart(self) -> None:
        """Every row back to the start of document 0; the device is not waited for."""
        self.position.zero_()
        self.segment.zero_()
        self.known, self.over = [0] * len(self.over), [False] * len(self.over)

    def check_rollback(self, count: int) -> None:
        """StateError unless every row's document has `count` tokens, and more where it began over another."""
        for row, (length, over) in enumerate(zip(self.lengths, self.over, strict=True)):
            if count > length or (over and count == length > 0):
                more = ", and began over another one, which is gone" if over else ""
                raise StateError(f"rollback: {count} tokens, but the document of row {row} has {length}{more}")

    def rollback(self, count: int) -> None:
        """Move every row back by `count` tokens."""
        self.position.sub_(count)
        self.known = [length - count for length in self.lengths]

    def open(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        segment_ids: Tensor | None = None,
        max_length: int | None = None,
    ) -> Context:
        """Read one call's tokens, check that they fit, move every row on, and return what the layers need to know.

        x: (b, t, ...); valid: (b, t) bool; segment_ids: (b, t) integers, a run of equal ids being one document.
        StateError, before anything changes: a row would hold more than max_length tokens. A recorded call cannot see
        that; it takes every row for full, or for empty where the recording begins with an empty state.
        """
        ctx, after, segment = _read(x, valid, segment_ids, self.position, self.segment)
        if recorded(x):
            known, over = None, self.over if segment_ids is None else [True] * len(self.over)
            most = sys.maxsize if max_length is None else max_length
            past, extent = (0, x.shape[1]) if fresh() else (most, most)
        else:
            known, over = self._count(x.shape[1], ctx, after, max_length)
            past, extent = max(self.lengths, default=0), max(known, default=0)
        self._move(after, segment)
        self.known, self.over = known, over
        return replace(ctx, past=past, extent=extent)

    def _move(self, position: Tensor, segment: Tensor) -> None:
        """In place, where a recording will look for them; with gradients on into new tensors, as a state's others are:
        a compiled call keeps for its backward pass what it was given."""
        if torch.is_grad_enabled():
            self.position, self.segment = position, segment.clone()  # it may be a part of the caller's segment_ids
        else:
            self.position.copy_(position)
            self.segment.copy_(segment)

    def count(self, tokens: int | list[int], max_length: int | None) -> list[int]:
        """The lengths after `tokens` more in every, or each, row. StateError: a document is longer than max_length."""
        more = [tokens] * len(self.lengths) if isinstance(tokens, int) else tokens
        known = [length + count for length, count in zip(self.lengths, more, strict=True)]
        _check_capacity(known, max_length)
        return known

    def _count(self, tokens: int, ctx: Context, after: Tensor, max_length: int | None) -> tuple[list[int], list[bool]]:
        """lengths and over after the call, on the host. StateError: a document is longer than max_length."""
        if ctx.lengths is None and ctx.document is None:
            return self.count(tokens, max_length), self.over
        real = ctx.positions if ctx.valid is None else ctx.positions.masked_fill(~ctx.valid, -1)
        _check_capacity((real.amax(dim=1) + 1).tolist(), max_length)
        over = self.over if ctx.document is None else _began_over(self.position, ctx.document, self.over)
        return after.tolist(), over


@contextmanager
def outside_inference() -> Iterator[None]:
    """Tensors made within are normal ones, that may be changed in any mode; whether gradients flow stays as it was."""
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def _check_capacity(lengths: list[int], max_length: int | None) -> None:
    """StateError if a row's document is longer than max_length."""
    longest = max(lengths, default=0)
    if max_length is not None and longest > max_length:
        raise StateError(
            f"the state is full: row {lengths.index(longest)} would hold {longest} tokens, and max_length is "
            f"{max_length}. Nothing was changed; make a larger one with init_state(batch, max_length={longest})"
        )


def _read(
    x: Tensor, valid: Tensor | None, segment_ids: Tensor | None, start: Tensor, segment: Tensor
) -> tuple[Context, Tensor, Tensor]:
    """One call's tokens, from where the rows stand: start, segment (b,). Returns where they stand after it, too."""
    order, lengths, prefix = _compact(valid)
    document, positions = None, start[:, None] + torch.arange(x.shape[1], device=x.device)
    if segment_ids is not None:
        ids = segment_ids if order is None else _take(segment_ids, order)
        document, positions, segment = _documents(ids, lengths, start, segment)
    ctx = Context(positions=positions, lengths=lengths, valid=prefix, document=document, order=order, mask=valid)
    return ctx, _after(start, positions, lengths), segment


def _compact(valid: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """valid (b, t) -> the gather index that puts valid tokens first, their number (b,), and the mask after it."""
    if valid is None:
        return None, None, None
    if valid.shape[1] == 1:
        return None, valid[:, 0].long(), valid
    lengths = valid.sum(dim=1)
    prefix = torch.arange(valid.shape[1], device=valid.device) < lengths[:, None]
    return valid.logical_not().to(torch.int8).argsort(dim=1, stable=True), lengths, prefix


def _documents(ids: Tensor, lengths: Tensor | None, start: Tensor, segment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number the runs of equal ids. ids (b, t) aligned; start, segment (b,): where the rows stood.

    Returns document (b, t), positions (b, t), and the last document's id (b,).
    """
    steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    ids = ids.to(torch.int64)
    if lengths is not None:
        last = torch.where(lengths > 0, _at(ids, (lengths - 1).clamp(min=0)), segment)
        ids = torch.where(steps < lengths[:, None], ids, last[:, None])
    begins = ids != torch.cat([segment[:, None], ids[:, :-1]], dim=1)
    document = begins.cumsum(dim=1)
    origin = torch.where(begins, steps, 0).cummax(dim=1).values
    positions = torch.where(document == 0, start[:, None] + steps, steps - origin)
    return document, positions, ids[:, -1]


def _began_over(start: Tensor, document: Tensor, over: list[bool]) -> list[bool]:
    """Whether each row's last document began over another: in this call, or before and it still goes on."""
    first = document[:, 0] * (start == 0)  # a document that begins in an empty row begins over nothing
    began = (document[:, -1] - first > 0).tolist()
    return [now or before for now, before in zip(began, over, strict=True)]


def _after(start: Tensor, positions: Tensor, lengths: Tensor | None) -> Tensor:
    """Where the rows stand after the call: one past their last valid token, or where they stood."""
    if lengths is None:
        return positions[:, -1] + 1
    return torch.where(lengths > 0, _at(positions, (lengths - 1).clamp(min=0)) + 1, start)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, None]).squeeze(1)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """x (b, t, ...) gathered along t by order (b, t)."""
    index = order.reshape(order.shape + (1,) * (x.ndim - 2)).expand(order.shape + x.shape[2:])
    return x.gather(1, index)


def _zero_where_not(keep: Tensor, x: Tensor) -> Tensor:
    """x with zeros where keep, which has x's first dimensions, is False; NaN there vanishes too."""
    return torch.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, 0)
