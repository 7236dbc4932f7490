"""What a state is made of: fresh memory, rollback, forks, dtypes, and the same bits every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hybridlm.errors import StateError, UnsupportedError
from hybridlm.state import ModelState, leaves
from hybridlm.testing.knobs import long_memory
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import EXACT, FLOOR, Result, broken, distance, holds, raises, refused, same
from hybridlm.testing.script import Call, goes_on, play, plays
from hybridlm.testing.subject import Solo, Subject, deterministic, memory, snapshot

POISON = 1e4


@law("C8", "unused memory is never read, and never written")
def poison(s: Subject) -> Iterator[Result]:
    rows, n = range(s.rows), s.tokens - 12
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 0] + [5] * s.rows)[: s.rows, None]
    for mode in (torch.no_grad, torch.enable_grad):
        with mode(), deterministic():  # where torch.empty gives NaN
            calls = [Call.piece(rows, 0, 5), Call.piece(rows, 5, 6), Call.piece(rows, 6, n), Call.piece(rows, n, n + 1)]
            yield from plays(s, f"poisoned, {mode.__name__}", calls, poisoned(s), look=False)
            ragged = [Call.padded(mask), Call.padded(mask.flip(1), mask.sum(1).tolist())]
            yield from plays(s, f"poisoned and padded, {mode.__name__}", ragged, poisoned(s), torch.nan, look=False)
            yield from plays(s, "fresh memory is NaN", calls, s.init_state(s.rows))
    yield from only_used_slots_are_written(s, mask)


def poisoned(s: Subject) -> ModelState:
    """An empty state whose slots hold garbage; what is not made of slots starts, and is read, at its first value."""
    state = s.init_state(s.rows)
    for name, tensor in memory(state).items():
        if name in slots(s):
            tensor.fill_(POISON)
    return state


def slots(s: Subject) -> dict[str, int]:
    """Tensors of the state that grow with max_length, {name: dimension}: those are made of slots."""
    short, long = memory(s.init_state(1, 2)), memory(s.init_state(1, 3))
    found = {}
    for name, tensor in short.items():
        for axis, (a, b) in enumerate(zip(tensor.shape, long[name].shape, strict=True)):
            if a != b:
                found[name] = axis
    return found


def only_used_slots_are_written(s: Subject, mask: Tensor) -> Iterator[Result]:
    """n valid tokens write n slots, or all there are; pads write none."""
    state = play(s, Call.padded(mask), poisoned(s), torch.nan)[1]
    for name, axis in slots(s).items():
        tensor = memory(state)[name].movedim(axis, 1).flatten(2)
        written = (tensor != POISON).any(dim=2).sum(dim=1).cpu()
        wanted = mask.sum(1).clamp(max=tensor.shape[1])
        fact = f"{written.tolist()}, not {wanted.tolist()}"
        yield holds(f"slots written: {name}", torch.equal(written, wanted), fact)


@law("C9", "rollback is exact at every position, or refused")
def rollback(s: Subject) -> Iterator[Result]:
    rows, n = range(s.rows), min(s.tokens - 4, 20)
    able = all(mixer.rolls_back for mixer in s.parts())
    for count in range(n + 1):
        state = play(s, Call.piece(rows, 0, n), s.init_state(s.rows))[1]
        before = snapshot(state)
        try:
            state = state.rollback(count)
        except UnsupportedError as error:
            yield from refusal(s, state, before, n, able, str(error))
            return
        yield holds(f"clock after {count}", state.position.tolist() == [n - count] * s.rows, f"{state.position}")
        yield from goes_on(s, f"rollback({count})", state, rows, [n - count] * s.rows)
    if not able:
        yield broken("rolls_back", "rollback works, but the class says rolls_back = False")
    yield raises("more than there is", StateError, lambda: s.init_state(2).rollback(1))
    yield from rollback_of_rows(s)


def rollback_of_rows(s: Subject) -> Iterator[Result]:
    """Rows of many lengths, and documents: what began over another document cannot be forgotten altogether."""
    rows, held = range(s.rows), ([9, 5, 4, 3] + [7] * s.rows)[: s.rows]
    ragged = Call.padded(torch.arange(9) < torch.tensor(held)[:, None])
    packed = Call.packed([[(row, 0, 6, 1), ((row + 1) % s.rows, 0, 4, 2)] for row in rows])
    after = [(row + 1) % s.rows for row in rows]
    for count in range(4):
        state = play(s, ragged, s.init_state(s.rows))[1].rollback(count)
        yield from goes_on(s, f"many lengths, rollback({count})", state, rows, [n - count for n in held])
        state = play(s, packed, s.init_state(s.rows))[1].rollback(count)
        yield from goes_on(s, f"second document, rollback({count})", state, after, [4 - count] * s.rows)
    whole = play(s, packed, s.init_state(s.rows))[1]
    yield raises("second document, rollback(4)", StateError, lambda: whole.rollback(4))


def refusal(s: Subject, state: ModelState, before: dict[str, Tensor], n: int, able: bool, why: str) -> Iterator[Result]:
    """A refused rollback changes nothing."""
    yield broken("refused", "refused, but the class says rolls_back = True") if able else refused("refused", why)
    kept = all(torch.equal(tensor, before[name]) for name, tensor in memory(state).items())
    yield holds("state after the refusal", kept and state.position.tolist() == [n] * s.rows, "it was changed")
    yield from goes_on(s, "after the refusal", state, range(s.rows), [n] * s.rows)


@law("C10", "a fork shares nothing; inputs are never changed; a spent state refuses")
def fork(s: Subject) -> Iterator[Result]:
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            yield from forks(s, mode.__name__)
            yield from inputs_stay(s, mode.__name__)
    yield from overflow(s)
    yield from outside_inference_mode(s)


def outside_inference_mode(s: Subject) -> Iterator[Result]:
    """A state made in inference mode goes on under no_grad and under gradients."""
    rows, n = range(s.rows), 8
    for mode in (torch.no_grad, torch.enable_grad):
        with torch.inference_mode():
            state = play(s, Call.piece(rows, 0, n), s.init_state(s.rows))[1]
        with mode():
            yield from goes_on(s, f"from inference mode, {mode.__name__}", state, rows, [n] * s.rows)


def forks(s: Subject, mode: str) -> Iterator[Result]:
    rows, n = range(s.rows), 11
    state = play(s, Call.piece(rows, 0, n), s.init_state(s.rows))[1]
    copies: dict[str, Callable[[], ModelState]] = {
        "fork": state.fork, "select": lambda: state.select(rows), "detach": state.detach,
    }  # fmt: skip
    for name, copy in copies.items():
        twin = copy()
        yield holds(f"{name} has memory of its own, {mode}", not addresses(state) & addresses(twin), "memory is shared")
        for other in (s.draw(s.rows, 1, 11), s.draw(s.rows, 9, 12)):
            twin = s.run(other, twin)[1]
        twin.reset()
    twin = state.fork()
    y, after = play(s, Call.piece(rows, n, n + 2), state)
    yield s.agrees(f"after its forks went on, {mode}", y, lambda trace: trace.y[:, n : n + 2])
    yield from goes_on(s, f"the fork after the original went on, {mode}", twin, rows, [n] * s.rows)
    uses = {"call": lambda: s.run(s.scene[:, :1], state), "fork": state.fork, "rollback": lambda: state.rollback(0)}
    for name, use in uses.items():
        yield raises(f"{name} of a spent state, {mode}", StateError, use)
    yield from goes_on(s, f"its successor, {mode}", after, rows, [n + 2] * s.rows)
    if isinstance(s, Solo):  # a model's own state stands guard over those of its layers
        spent = all(leaf.spent for leaf in leaves(state.layers))
        yield holds(f"layer states are spent, {mode}", spent, "a layer's state is not marked spent")


def addresses(state: ModelState) -> set[int]:
    """Where its tensors lie."""
    tensors = [*memory(state).values(), state.position, state.cursor.segment]
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}


def inputs_stay(s: Subject, mode: str) -> Iterator[Result]:
    x, ids = s.scene[:, :12].clone(), torch.arange(12).expand(s.rows, 12).div(5, rounding_mode="floor").clone()
    valid = torch.rand(s.rows, 12, generator=torch.Generator().manual_seed(7)) < 0.7
    given = {"x": x, "ids": ids.to(s.device), "valid": valid.to(s.device)}
    before = {name: tensor.clone() for name, tensor in given.items()}
    for state in (None, s.init_state(s.rows)):
        for used in ({}, {"ids"}, {"valid"}, {"ids", "valid"}):
            later = None if state is None else state.fork()
            s.run(x, later, **{name: given[name] for name in used})
    for name, tensor in given.items():
        yield same(f"{name} after the calls, {mode}", tensor, before[name], f"{name} was changed")


def overflow(s: Subject) -> Iterator[Result]:
    rows = range(s.rows)
    state = play(s, Call.piece(rows, 0, 6), s.init_state(s.rows, 9))[1]
    yield raises("more tokens than max_length", StateError, lambda: play(s, Call.piece(rows, 6, 10), state))
    yield from goes_on(s, "after the overflow", state, rows, [6] * s.rows)


@law("C12", "the state keeps its dtype, and a long memory its precision")
def dtypes(s: Subject) -> Iterator[Result]:
    rows, wanted = range(s.rows), {name: tensor.dtype for name, tensor in memory(s.init_state(1)).items()}
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            state = s.init_state(s.rows)
            for call in (Call.piece(rows, 0, 9), Call.piece(rows, 9, 10), Call.piece(rows, 10, s.tokens)):
                y, state = play(s, call, state)
                yield holds(f"output, {mode.__name__}", y.dtype == s.dtype, f"{y.dtype}, not {s.dtype}")
                yield from kept(f"{call.rows.shape[1]} tokens, {mode.__name__}", state, wanted)
    if s.dtype == torch.float32:
        yield from autocast(s, wanted)
    if isinstance(s, Solo):
        yield from remembers_long(s)


def kept(case: str, state: ModelState, wanted: dict[str, torch.dtype]) -> Iterator[Result]:
    for name, tensor in memory(state).items():
        yield holds(f"{case}: {name}", tensor.dtype == wanted[name], f"{tensor.dtype}, not {wanted[name]}")


def autocast(s: Subject, wanted: dict[str, torch.dtype]) -> Iterator[Result]:
    """Under autocast to bf16 the state stays what it was, and outputs are off by a few roundings only."""
    with torch.autocast(s.device.type, torch.bfloat16):
        state, ys = s.init_state(s.rows), []
        for start, stop in ((0, 9), (9, 10), (10, min(40, s.tokens))):
            y, state = play(s, Call.piece(range(s.rows), start, stop), state)
            ys.append(y)
            yield from kept(f"autocast, {start} .. {stop}", state, wanted)
    y = torch.cat(ys, dim=1)
    error, worst = distance(y.flatten(0, 1), s.truth.y[:, : y.shape[1]].flatten(0, 1))
    limit = 6 * FLOOR[torch.bfloat16]
    yield Result("", "autocast", error, worst, limit, "passed" if error <= limit and worst <= 10 * limit else "failed")


def remembers_long(s: Subject) -> Iterator[Result]:
    """Thousands of tokens with the slowest decay: the state is that of a float64 run, handed on at other places."""
    twin = s.twin()
    tokens = 16384 if long_memory(twin.module) else 2048
    reference = twin.twin(torch.float64, "reference")
    x = s.draw(1, tokens, seed=13)
    states = []
    for subject, size in ((twin, 128), (reference, 512)):
        state = subject.init_state(1, tokens)
        for piece in x.to(subject.dtype).split(size, dim=1):
            state = subject.run(piece, state)[1]
        states.append(memory(state))
    limit = {torch.float64: EXACT[torch.float64] * 100, torch.float32: 1e-4}.get(s.dtype) or 4 * FLOOR[s.dtype]
    for name, tensor in states[0].items():
        error, worst = distance(tensor, states[1][name])
        yield Result("", f"{tokens} tokens: {name}", error, worst, limit, "passed" if error <= limit else "failed")


@law("C13", "the same call gives the same bits")
def determinism(s: Subject) -> Iterator[Result]:
    x = s.scene
    with deterministic(), torch.enable_grad():
        runs = []
        for _ in range(3):
            y, state = s.run(x[:, :-1], s.init_state(s.rows))
            z = s.run(x[:, -1:], state)[0]
            loss = y.double().square().sum() + z.double().square().sum()
            grads = torch.autograd.grad(loss, list(s.module.parameters()), allow_unused=True)
            runs.append([y, z, *memory(state).values(), *(g for g in grads if g is not None)])
    for i in (1, 2):
        equal = all(torch.equal(a, b) for a, b in zip(runs[0], runs[i], strict=True))
        yield holds(f"run {i + 1}", equal, "outputs, state or gradients differ from the first run")
