"""Across rows: batches, pads, documents packed in a row, rows chosen from a state."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridlm.testing.gradients import compare, gradients, losses, weighted
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import Result, holds
from hybridlm.testing.script import Call, goes_on, play, plays, run_call
from hybridlm.testing.subject import Subject

GARBAGE = (1e4, torch.nan)


@law("C4", "permuting, repeating and adding rows changes nothing")
def batch(s: Subject) -> Iterator[Result]:
    n = s.tokens // 2
    for rows in ([0], [s.rows - 1, 0], [2, 0, 0, 3, 1, 2], list(range(s.rows)) * 2):
        calls = [Call.piece(rows, 0, n), Call.piece(rows, n, n + 1), Call.piece(rows, n + 1, s.tokens)]
        yield from plays(s, f"rows {rows}", [Call.piece(rows, 0, s.tokens)], None)
        yield from plays(s, f"rows {rows}, with a state", calls, s.init_state(len(rows)))
    yield from alone(s)


def alone(s: Subject) -> Iterator[Result]:
    """A row of NaN, and one of large numbers, stay alone."""
    x, whole = s.scene.clone(), Call.piece(range(1, s.rows), 0, s.tokens)
    for noise in (torch.nan, 1e3):
        x[0] = noise
        yield s.agrees(f"beside a row of {noise}", whole.seen(s.run(x)[0][1:]), whole.pick)
        y, state = s.run(x[:, :-1], s.init_state(s.rows))
        y = torch.cat([y, s.run(x[:, -1:], state)[0]], dim=1)
        yield s.agrees(f"beside a row of {noise}, with a state", whole.seen(y[1:]), whole.pick)


@law("C5", "pads on any side change nothing, whatever stands in them")
def padding(s: Subject) -> Iterator[Result]:
    for case, mask in masks(s.rows, min(s.tokens - 8, 20)).items():
        for garbage in GARBAGE:
            label = f"{case}, pads {garbage}"
            yield from plays(s, f"{label}, no state", [Call.padded(mask)], None, garbage)
            yield from padded_calls(s, label, mask, range(s.rows), garbage)
        for row in (0, 1):
            yield from padded_calls(s, f"{case}, row {row} alone", mask[row : row + 1], [row], torch.nan)
        with torch.enable_grad():
            yield from padded_calls(s, f"{case}, gradients on", mask, range(s.rows), torch.nan)


def padded_calls(s: Subject, case: str, mask: Tensor, rows, garbage: float) -> Iterator[Result]:
    """A padded prompt; 3 tokens decoded, of which one row skips one; a padded chunk."""
    held, calls = [0] * len(mask), []
    skip = torch.ones(len(mask), 1, dtype=torch.bool)
    skip[0] = len(mask) == 1
    for part in (mask, torch.ones_like(skip), skip, torch.ones_like(skip), mask.flip(0)[:, :5]):
        calls.append(Call.padded(part, held, rows))
        held = [n + more for n, more in zip(held, part.sum(1).tolist(), strict=True)]
    state = s.init_state(len(mask))
    yield from plays(s, case, calls, state, garbage)


def masks(b: int, t: int) -> dict[str, Tensor]:
    """Where the valid tokens are, (b, t): the first row full or nearly so, one with a single token, one with none."""
    lengths = torch.tensor([t - 1, t // 2 + 1, 1, 0] + [t // 3] * b)[:b, None]
    steps = torch.arange(t)
    right = steps < lengths
    left = right.flip(1)
    both = (steps >= 3) & (steps < 3 + lengths.clamp(max=t - 5))
    inside = torch.rand(b, t, generator=torch.Generator().manual_seed(4)) < 0.6
    full = torch.ones(b, t, dtype=torch.bool)
    return {"right": right, "left": left, "both": both, "inside": inside, "none": full}


@law("C6", "documents packed in a row equal the documents apart")
def packing(s: Subject) -> Iterator[Result]:
    fresh = Call.packed(documents(s))
    for case, call in (("packed", fresh), ("packed and padded", fresh.among(ragged(fresh)))):
        yield from plays(s, f"{case}, no state", [call], None, garbage=torch.nan)
        state = s.init_state(len(call.rows))
        yield from plays(s, case, [call], state.fork(), garbage=torch.nan)
        rows, held = (x.tolist() for x in call.after())
        yield from goes_on(s, case, play(s, call, state, torch.nan)[1], rows, held)
    with torch.enable_grad():
        yield from plays(s, "packed, gradients on", [fresh], s.init_state(len(fresh.rows)))
        yield from plays(s, "continued, gradients on", continued(s.rows), s.init_state(s.rows), look=False)
        yield from no_leak(s, fresh)
        yield from gradients_apart(s, fresh)
    yield from plays(s, "continued", continued(s.rows), s.init_state(s.rows), look=False)


def documents(s: Subject) -> list[list[tuple[int, int, int, int]]]:
    """Documents of length 1, 2, 3, ..., each the beginning of a row of the scene: three orders of the same ones."""
    sizes: list[int] = []
    while sum(sizes) < min(s.tokens, 45):
        sizes.append(len(sizes) + 1)
    orders = (sizes, sizes[::-1], sizes[1::2] + sizes[::2])
    return [[((i + k) % s.rows, 0, n, 7 * n + k) for i, n in enumerate(order)] for k, order in enumerate(orders)]


def ragged(call: Call) -> Tensor:
    """A mask with room for the call's tokens, and pads before, between and after them."""
    b, t = call.rows.shape
    return torch.rand(b, t + 9, generator=torch.Generator().manual_seed(5)).argsort(dim=1) < t


def continued(b: int) -> list[Call]:
    """A document goes on in the next call under its id or without ids; any other id starts anew, in some rows only."""
    one, two, odd = [(r + 1) % b for r in range(b)], [(r + 2) % b for r in range(b)], [r % 2 for r in range(b)]
    rows = range(b)
    reset = [[(r, 0, 2, 7) if odd[r] else (two[r], 8, 2, 91)] for r in rows]
    then = [(r, 2) if odd[r] else (two[r], 10) for r in rows]
    anew = [[(one[r], 0, 1, 9)] if odd[r] else [(two[r], 11, 1, 91)] for r in rows]
    return [
        Call.packed([[(r, 0, 1, r), (one[r], 0, 6, 4 + r)] for r in rows]),
        Call.packed([[(one[r], 6, 5, 4 + r), (r, 0, 3, 90), (two[r], 0, 4, 91)] for r in rows]),
        Call.packed([[(two[r], 4, 2, 91)] for r in rows]),
        Call.piece(two, 6, 8),
        Call.packed(reset),
        Call.piece([row for row, _ in then], [step for _, step in then], then[0][1] + 1),
        Call.packed(anew),
        Call.packed([[(one[r], 1, 3, 9)] if odd[r] else [(two[r], 12, 3, 91)] for r in rows]),
    ]


def no_leak(s: Subject, call: Call) -> Iterator[Result]:
    """dL(document i) / dx(document j) is exactly zero."""
    x = call.inputs(s).requires_grad_()
    y, _ = s.run(x, None, None, call.ids.to(s.device))
    for document in call.ids[0].unique().tolist():
        inside = torch.zeros_like(call.ids, dtype=torch.bool)
        inside[0] = call.ids[0] == document
        (dx,) = torch.autograd.grad(y[inside.to(s.device)].double().square().sum(), x, retain_graph=True)
        leak = dx[~inside.to(s.device)].abs().max().item()
        yield holds(f"gradient of document {document} alone", leak == 0, f"leaks {leak:.1e} into other documents")


def gradients_apart(s: Subject, call: Call) -> Iterator[Result]:
    """Gradients of every parameter: packed, against the documents run one by one in float64."""

    def run(subject: Subject, plain: bool) -> dict[str, Tensor]:
        if subject is s or plain:
            start = subject.init_state(len(call.rows)) if plain else None
            y = run_call(subject, call, call.inputs(subject), start, plain)[0].flatten(0, 1)
        else:
            pieces = [subject.scene[r : r + 1, :n] for row in documents(s) for r, _, n, _ in row]
            y = torch.cat([subject.run(piece)[0][0] for piece in pieces])
        return gradients(subject, y, weighted(y, losses(s)))

    yield from compare("packed gradient", s, run, s.allowed(call.pick))


@law("C7", "rows of a state can be reordered, repeated, chosen and emptied")
def select(s: Subject) -> Iterator[Result]:
    b, held = s.rows, [9, 5, 1, 3] + [7] * (s.rows - 4)
    held = held[:b]
    mask = torch.arange(9) < torch.tensor(held)[:, None]
    state = play(s, Call.padded(mask), s.init_state(b), torch.nan)[1]
    for rows in (list(range(b))[::-1], [0, 0, 2, 0], [1], torch.arange(b) % 2 == 0):
        chosen = torch.arange(b)[rows].tolist()
        kept = [held[row] for row in chosen]
        part = state.select(rows)
        yield from s.remembers(f"select {chosen}", part, torch.tensor(chosen), torch.tensor(kept))
        yield from goes_on(s, f"select {chosen}", part, chosen, kept)
    emptied = state.fork().reset([0, 2])
    kept = [0 if row in (0, 2) else n for row, n in enumerate(held)]
    yield from s.remembers("reset [0, 2]", emptied, torch.arange(b), torch.tensor(kept))
    yield from goes_on(s, "reset [0, 2]", emptied, range(b), kept)
    yield from goes_on(s, "reset", state.fork().reset(), range(b), [0] * b)
    yield from goes_on(s, "the state that was chosen from", state, range(b), held)
