"""Calls that move the tokens of the scene about: split, padded, packed and reordered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hybridlm.state import ModelState
from hybridlm.testing.result import Result
from hybridlm.testing.subject import Subject, Trace

Ran = tuple[Tensor, ModelState | None]


@dataclass(frozen=True)
class Call:
    """One call on tokens of the scene.

    rows, steps: (b, t), which token of the scene stands at each place. valid, ids: as the call gets them.
    """

    rows: Tensor
    steps: Tensor
    valid: Tensor | None = None
    ids: Tensor | None = None

    @classmethod
    def piece(cls, rows: Sequence[int], start: int | Sequence[int], stop: int) -> Self:
        """Tokens start .. stop of some rows of the scene; several starts: as many tokens of each row."""
        starts = torch.as_tensor([start] * len(rows) if isinstance(start, int) else list(start))
        steps = starts[:, None] + torch.arange(stop - int(starts[0]))
        return cls(torch.tensor(rows)[:, None].expand_as(steps), steps)

    @classmethod
    def padded(cls, mask: Tensor, starts: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> Self:
        """Row r of the scene from starts[r] on, at the places where mask (b, t) is True."""
        rows = range(len(mask)) if rows is None else rows
        starts = [0] * len(mask) if starts is None else starts
        steps = (torch.tensor(list(starts))[:, None] + mask.cumsum(1) - 1).clamp(min=0)
        return cls(torch.tensor(list(rows))[:, None].expand_as(steps), steps, valid=mask)

    @classmethod
    def packed(cls, documents: Sequence[Sequence[tuple[int, int, int, int]]]) -> Self:
        """Each row of the batch: (row of the scene, start, length, id) of one document after the other."""
        rows = [[r for r, _, n, _ in row for _ in range(n)] for row in documents]
        steps = [[start + i for _, start, n, _ in row for i in range(n)] for row in documents]
        ids = [[name for _, _, n, name in row for _ in range(n)] for row in documents]
        return cls(torch.tensor(rows), torch.tensor(steps), ids=torch.tensor(ids))

    def among(self, mask: Tensor) -> Self:
        """The same tokens at the True places of mask (b, t'), pads between them."""
        order = (mask.cumsum(1) - 1).clamp(min=0)
        ids = None if self.ids is None else self.ids.gather(1, order)
        return replace(self, rows=self.rows.gather(1, order), steps=self.steps.gather(1, order), valid=mask, ids=ids)

    def pick(self, trace: Trace) -> Tensor:
        """The outputs of its valid tokens, (n, e)."""
        rows, steps = self.rows.to(trace.y.device), self.steps.to(trace.y.device)
        return self.seen(trace.y[rows, steps])

    def seen(self, y: Tensor) -> Tensor:
        """y (b, t, e) at the valid tokens, (n, e)."""
        return y.flatten(0, 1) if self.valid is None else y[self.valid.to(y.device)]

    def inputs(self, subject: Subject, garbage: float = 0.0) -> Tensor:
        """x (b, t, d), with garbage at the pads."""
        x = subject.scene[self.rows.to(subject.device), self.steps.to(subject.device)]
        return x if self.valid is None else x.masked_fill(~self.valid.to(x.device)[..., None], garbage)

    def after(self) -> tuple[Tensor, Tensor]:
        """(rows of the scene that the state then holds, how many tokens of each), both (b,); pads on the right only."""
        steps = self.steps if self.valid is None else self.steps.masked_fill(~self.valid, -1)
        last = steps.shape[1] - 1 - (steps >= 0).flip(1).to(torch.int8).argmax(dim=1)
        return self.rows.gather(1, last[:, None])[:, 0], steps.gather(1, last[:, None])[:, 0] + 1


def play(subject: Subject, call: Call, state: ModelState | None = None, garbage: float = 0.0) -> Ran:
    """Run one call: (y (b, t, e), the next state)."""
    return run_call(subject, call, call.inputs(subject, garbage), state)


def run_call(subject: Subject, call: Call, x: Tensor, state: ModelState | None, plain: bool = False) -> Ran:
    """Run one call on x (b, t, d); plain: token by token, which needs a state."""
    valid, ids = (None if given is None else given.to(subject.device) for given in (call.valid, call.ids))
    if not plain:
        return subject.run(x, state, valid, ids)
    ys = []
    for i in range(x.shape[1]):
        at = slice(i, i + 1)
        given = (None if tensor is None else tensor[:, at] for tensor in (valid, ids))
        y, state = subject.run(x[:, at], state, *given)
        ys.append(y)
    return torch.cat(ys, dim=1), state


def plays(
    subject: Subject,
    case: str,
    calls: Sequence[Call],
    state: ModelState | None,
    garbage: float = 0.0,
    look: bool = True,
) -> Iterator[Result]:
    """Run calls one after the other; outputs, and (look) the state after each, must be those of the scene."""
    held = None
    for i, call in enumerate(calls):
        label = case if len(calls) == 1 else f"{case}, call {i + 1}"
        y, state = play(subject, call, state, garbage)
        if call.valid is None or call.valid.any():
            yield subject.agrees(label, call.seen(y), call.pick)
        if state is not None and look:
            rows, lengths = call.after()
            held = lengths if held is None else torch.where(lengths > 0, lengths, held)
            yield from subject.remembers(label, state, rows, held)


def goes_on(
    subject: Subject, case: str, state: ModelState, rows: Sequence[int], held: Sequence[int]
) -> Iterator[Result]:
    """Decode 3 tokens more of the given rows of the scene, one by one, from a state that holds so many of each."""
    for i in range(3):
        call = Call.piece(rows, [n + i for n in held], held[0] + i + 1)
        y, state = play(subject, call, state)
        yield subject.agrees(f"{case}, then token {i + 1}", call.seen(y), call.pick)
