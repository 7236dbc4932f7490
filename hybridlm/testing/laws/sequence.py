"""Along time: the the oracle, splits, causality, purity."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hybridlm.testing.laws.law import law
from hybridlm.testing.result import EXACT, FLOOR, Result, broken, distance, holds, measured, same
from hybridlm.testing.script import Call, plays
from hybridlm.testing.subject import Solo, Subject

PIECES = ([1, 2, 2, 3, 1], [5, 2, 9], [1, 1, 1, 30, 1], [17, 1, 16, 1, 33])
ROUNDINGS = 6
"""In bf16, plain eager PyTorch with a float32 state may be this many times the floor of one rounding off."""


@law("C1", "outputs and state equal a float64 oracle, one row, one token at a time")
def oracle(s: Subject) -> Iterator[Result]:
    whole = Call.piece(range(s.rows), 0, s.tokens)
    yield from plays(s, "no state", [whole], None)
    yield from plays(s, "whole", [whole], s.init_state(s.rows))
    with torch.enable_grad():
        yield from plays(s, "no state, gradients on", [whole], None)
        yield from plays(s, "whole, gradients on", [whole], s.init_state(s.rows))
    steps = [Call.piece(range(s.rows), i, i + 1) for i in range(min(s.tokens, 24))]
    yield from plays(s, "token by token", steps, s.init_state(s.rows))
    yield from past_is_heard(s)
    if not s.exact:
        error, worst = distance(s.plain.y.flatten(0, 1), s.truth.y.flatten(0, 1))
        limit = ROUNDINGS * FLOOR[s.dtype]
        yield Result("", "plain PyTorch", error, worst, limit, "passed" if error <= limit else "failed")
    if isinstance(s, Solo) and s.paper is not None:
        yield from paper(s)


def past_is_heard(s: Subject) -> Iterator[Result]:
    """The outputs depend on earlier tokens, or every other law would hold for nothing."""
    x = s.scene[:, :4].clone()
    before = s.run(x, s.init_state(s.rows))[0]
    x[:, 0] = x[:, 0].flip(0)
    change, _ = distance(s.run(x, s.init_state(s.rows))[0][:, 1:].flatten(0, 1), before[:, 1:].flatten(0, 1))
    yield holds("an earlier token matters", change > 1e-3, f"outputs moved by {change:.1e}: nothing is remembered")


def paper(s: Solo) -> Iterator[Result]:
    """The float64 step by step run against an oracle of the user's own; of slots, as many as it gives."""
    limit, row = EXACT[torch.float64], 1
    y, states = s.paper(s.twin(torch.float64, "reference").module, s.scene[row].double())
    yield measured("paper", s.truth.y[row], y, limit)
    for name, tensor in states.items():
        held = s.truth.memory[f"0.{s.mixer.State.kind}.{name}"][-1, row]
        yield measured(f"paper: state {name}", held[None, : len(tensor)], tensor[None], limit)


@law("C2", "any split of the sequence gives the whole: outputs, and state after each piece")
def split(s: Subject) -> Iterator[Result]:
    rows = range(s.rows)
    for n in range(1, s.tokens):
        calls = [Call.piece(rows, 0, n), Call.piece(rows, n, s.tokens)]
        yield from plays(s, f"{n} + {s.tokens - n}", calls, s.init_state(s.rows))
    for sizes in PIECES:
        calls = pieces(rows, sizes, s.tokens)
        yield from plays(s, str(sizes), calls, s.init_state(s.rows))
        with torch.enable_grad():
            yield from plays(s, f"{sizes}, gradients on", calls, s.init_state(s.rows))
        with torch.inference_mode():
            yield from plays(s, f"{sizes}, inference mode", calls, s.init_state(s.rows))


def pieces(rows: range, sizes: list[int], tokens: int) -> list[Call]:
    """Pieces of these sizes, as far as the scene reaches."""
    ends = torch.tensor(sizes).cumsum(0).clamp(max=tokens).tolist()
    return [Call.piece(rows, start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]


@law("C3", "what comes later changes nothing before it")
def causality(s: Subject) -> Iterator[Result]:
    x, loud = s.scene, s.scene.square().mean().sqrt().item()
    whole = s.run(x)[0]
    for t in sorted({1, 2, 3, 5, 8, 16, 17, 33, 64, s.tokens - 1} & set(range(1, s.tokens))):
        for case, later in (("another end", -x[:, t:].flip(0)), ("an end times 1000", 1000 * x[:, t:])):
            changed = torch.cat([x[:, :t], later], dim=1)
            limit = s.coarse * max(1.0, changed.double().square().mean().sqrt().item() / loud)
            for how, y in (("", s.run(changed)[0]), (", with a state", s.run(changed, s.init_state(s.rows))[0])):
                yield measured(f"{case} from {t}{how}", y[:, :t].flatten(0, 1), whole[:, :t].flatten(0, 1), limit)
    yield from steps_are_causal(s)


def steps_are_causal(s: Subject) -> Iterator[Result]:
    """Token by token, later tokens do not exist yet; NaN after t leaves the past bit for bit alone."""
    runs = []
    for end in (s.scene[:, 6:9], torch.full_like(s.scene[:, 6:9], torch.nan)):
        state, ys = s.init_state(s.rows), []
        for token in torch.cat([s.scene[:, :6], end], dim=1).unbind(1):
            y, state = s.run(token[:, None], state)
            ys.append(y)
        runs.append(torch.cat(ys[:6], dim=1))
    yield same("NaN after the 6th step", runs[1], runs[0])


@law("C11", "a call leaves no trace")
def purity(s: Subject) -> Iterator[Result]:
    before = {name: tensor.clone() for name, tensor in s.module.state_dict().items()}
    for t in (1, 2, s.tokens):
        x = s.scene[:, :t]
        alone, begun = s.run(x)[0], s.run(x, s.init_state(s.rows))[0]
        shapes = ((2, s.tokens), (s.rows + 1, 3), (s.rows, 1), (s.rows, t))
        for other in (10 * s.draw(*shape, seed=8) for shape in shapes):
            s.run(other)
            s.run(other, s.init_state(len(other)))
        yield same(f"{t} tokens", s.run(x)[0], alone)
        yield same(f"{t} tokens, with a state", s.run(x, s.init_state(s.rows))[0], begun)
    for name, tensor in s.module.state_dict().items():
        if not torch.equal(tensor, before[name]):
            yield broken("weights", f"{name} was changed by a call")
