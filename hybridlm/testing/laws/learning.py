"""Training: gradients, extremes, first values, decay, weights that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from hybridlm.layers.init import Streams
from hybridlm.testing.gradients import compare, filled, gradients, losses, weighted
from hybridlm.testing.knobs import LOG_RATES, UNDECAYED, called, set_rate, set_step, step_sizes
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import Result, distance, holds, measured, same
from hybridlm.testing.script import Call, run_call
from hybridlm.testing.subject import Solo, Subject, memory

STEP, SLOPE = 1e-5, 1e-6
"""Finite differences in float64: their step, and how far a slope may be from the gradient, relative to its length."""


@law("C14", "gradients: by finite differences in float64, and close to them in every dtype", of=Solo)
def gradient(s: Solo) -> Iterator[Result]:
    with torch.enable_grad():
        if s.exact:
            yield from finite_differences(s.twin(torch.float64))
        yield from close_to_float64(s)
        yield from strided(s)
        yield from graphs_keep_their_memory(s)


def cases(s: Subject, b: int = 2, t: int = 19) -> dict[str, Call]:
    """Plain, padded, packed, both, one token."""
    plain = Call.piece(range(b), 0, t)
    mask = torch.rand(b, t, generator=torch.Generator().manual_seed(14)) < 0.7
    packed = Call.packed([[(0, 0, 5, 0), (1, 0, 1, 3), (2, 0, 9, 4), (0, 0, 4, 5)], [(1, 0, 7, 2), (2, 0, 12, 8)]])
    wide = torch.rand(b, t + 4, generator=torch.Generator().manual_seed(15)).argsort(dim=1) < t
    return {
        "plain": plain,
        "padded": Call.padded(mask),
        "packed": packed,
        "packed and padded": packed.among(wide),
        "one token": Call.piece(range(b), 0, 1),
    }


def through_state(s: Subject, call: Call, plain: bool = False) -> tuple[Callable[..., tuple], list[Tensor]]:
    """A call as a function of x and of the state it begins with -> (valid outputs, tensors of the next state).

    The state holds 6 tokens, so that nothing in it is zero. plain: token by token.
    """
    with torch.no_grad():
        begun = s.run(s.draw(len(call.rows), 6, 16), s.init_state(len(call.rows), 64))[1]

    def function(x: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        y, after = run_call(s, call, x, filled(begun, list(held)), plain)
        return call.seen(y), *memory(after).values()

    start = [call.inputs(s), *(tensor.clone() for tensor in memory(begun).values())]
    return function, [tensor.detach().requires_grad_() for tensor in start]


def finite_differences(s: Subject) -> Iterator[Result]:
    """Outputs and next state, weighed, moved along a random direction of x, of each tensor of the state, and of each
    parameter. (torch.autograd.gradcheck's fast mode lets an error of 1% pass.)"""
    for case, call in cases(s).items():
        function, start = through_state(s, call)
        leaves = {f"input {i}": tensor for i, tensor in enumerate(start)} | dict(s.module.named_parameters())
        weights = [weighted(tensor)[0] for tensor in function(*start)]

        def loss(function=function, start=start, weights=weights) -> Tensor:
            return sum((w * tensor).sum() for w, tensor in zip(weights, function(*start), strict=True))

        found = torch.autograd.grad(loss(), list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            yield along_a_line(f"finite differences, {case}: {name}", loss, leaf.data, gradient)


def along_a_line(case: str, loss: Callable[[], Tensor], leaf: Tensor, gradient: Tensor) -> Result:
    """The slope of L(leaf + h u) at h = 0 against <gradient, u>, in units of |gradient|.

    A central difference is off by what the loss curves, times h^2; where that is too much (a norm of few numbers), a
    second one, of half the step, takes it away (Richardson). A wrong gradient stays wrong.
    """
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(24), dtype=leaf.dtype).to(leaf.device)
    said, unit = (gradient * direction).sum().item(), max(gradient.norm().item(), 1e-3)
    slope = central_difference(loss, leaf, direction, STEP)
    if abs(slope - said) > SLOPE * unit:
        slope += (central_difference(loss, leaf, direction, STEP / 2) - slope) * 4 / 3
    off = abs(slope - said) / unit
    return Result("", case, off, off, SLOPE, "passed" if off <= SLOPE else "failed")


def central_difference(loss: Callable[[], Tensor], leaf: Tensor, direction: Tensor, step: float) -> float:
    """(L(leaf + h u) - L(leaf - h u)) / 2h."""
    before, values = leaf.clone(), []
    with torch.no_grad():
        for sign in (1, -1):
            leaf.copy_(before + sign * step * direction)
            values.append(loss().item())
        leaf.copy_(before)
    return (values[0] - values[1]) / (2 * step)


def close_to_float64(s: Subject) -> Iterator[Result]:
    """Every gradient against float64: of a call from a state, and of whole rows in one call and in three."""
    count, whole = losses(s), Call.piece(range(s.rows), 0, s.tokens)
    for case, call in cases(s).items():
        run = partial(from_state, call=call, count=count)
        yield from compare(f"{case}, from a state", s, run, s.allowed(call.pick))
    for case, cuts in {"in one call": [], "in three calls": [0.5, 0.6]}.items():
        yield from compare(case, s, partial(in_pieces, cuts=cuts, count=count), s.allowed(whole.pick))


def from_state(s: Subject, plain: bool, call: Call, count: int) -> dict[str, Tensor]:
    """Gradients of outputs and of the next state, with respect to x, the state and the parameters."""
    function, start = through_state(s, call, plain)
    named = {f"input {i}": tensor for i, tensor in enumerate(start)}
    outputs = torch.cat([tensor.double().flatten() for tensor in function(*start)])
    return gradients(s, outputs, weighted(outputs, count), **named)


def in_pieces(s: Subject, plain: bool, cuts: list[float], count: int) -> dict[str, Tensor]:
    """Gradients of a whole row, cut into calls at these fractions: they flow back through the state."""
    x, state, ys = s.scene.detach().clone().requires_grad_(), s.init_state(s.rows), []
    ends = range(s.tokens + 1) if plain else [0, *(int(cut * s.tokens) for cut in cuts), s.tokens]
    for start, stop in pairwise(ends):
        y, state = s.run(x[:, start:stop], state)
        ys.append(y)
    outputs = torch.cat(ys, dim=1)
    return gradients(s, outputs, weighted(outputs, count), x=x)


def strided(s: Subject) -> Iterator[Result]:
    """Inputs and incoming gradients that do not lie in memory in order."""
    x = s.scene.detach()
    weights = weighted(s.truth.y)[0].to(s.dtype)
    layouts = {
        "as it is": lambda tensor: tensor,
        "transposed": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "channels first": lambda tensor: tensor.mT.contiguous().mT,
        "sliced": lambda tensor: torch.stack([tensor, -tensor], dim=-1)[..., 0],
    }
    found = {}
    for name, layout in layouts.items():
        leaf = layout(x).requires_grad_()
        y, _ = s.run(leaf, s.init_state(s.rows))
        found[name] = torch.autograd.grad(y, leaf, layout(weights))[0]
        yield s.agrees(f"{name} input", y, lambda trace: trace.y)
        yield measured(f"{name} gradient", found[name].flatten(0, 1), found["as it is"].flatten(0, 1), 4 * s.coarse)
    row = x[:1].expand(3, -1, -1)
    yield s.agrees("expanded input", s.run(row, s.init_state(3))[0], lambda trace: trace.y[:1].expand(3, -1, -1))


def graphs_keep_their_memory(s: Subject) -> Iterator[Result]:
    """Decoding on from a call's state under no_grad leaves that call's gradients alone, whatever is frozen.

    Kernels may add up in another order each time they run: theirs need only be close.
    """
    twin = s.twin()
    parameters = dict(twin.module.named_parameters())
    for name, chosen in parameters.items():
        for parameter in parameters.values():
            parameter.requires_grad_(parameter is chosen)
        found = []
        for goes_on in (False, True):
            with torch.no_grad():
                state = twin.run(s.scene[:, :6], twin.init_state(s.rows))[1]
            y, state = twin.run(s.scene[:, 6:9], state)
            with torch.no_grad():
                state = twin.run(s.scene[:, 9:12], state)[1] if goes_on else state
            found.append(torch.autograd.grad(y.double().square().sum(), chosen)[0])
        case, off = f"gradient of {name} after decoding on", distance(found[1][None], found[0][None])[0]
        yield holds(case, off <= s.coarse, f"off by {off:.1e}") if s.kernels else same(case, found[1], found[0])


GRADIENT = "gradient of "


@law("C16", "extreme inputs and step sizes: everything stays finite", of=Solo)
def extremes(s: Solo) -> Iterator[Result]:
    loud = 10 if s.dtype == torch.float16 else 1e4  # fp16 ends at 65504, and a gate multiplies
    yield from finite(s, f"|x| = {loud:g}", loud * s.scene)
    yield from finite(s, "x = 0", 0 * s.scene)
    knobs = {"dt -> 0": (1e-8, 1.0), "dt = 0": (0.0, 1.0), "dt A = -1000": (10.0, 100.0), "dt A -> 0": (1e-6, 1e-4)}
    for case, (dt, rate) in knobs.items():
        twin = s.twin()
        if set_step(twin.module, dt) and set_rate(twin.module, rate):
            yield from finite(twin, case, s.scene)


def finite(s: Subject, case: str, x: Tensor) -> Iterator[Result]:
    """Outputs, next state and gradients of x and of every parameter, in one call and from a state.

    A gradient that is truly larger than half of what fp16 can hold need not be finite there.
    """
    bad = [name for name, tensor in everything(s, x).items() if not tensor.isfinite().all()]
    if bad and not s.exact:
        true, most = everything(s.twin(torch.float64, "reference"), x.double()), torch.finfo(s.dtype).max / 2
        bad = [name for name in bad if not name.startswith(GRADIENT) or true[name].abs().max() < most]
    yield holds(case, not bad, f"not finite: {', '.join(bad)}")


def everything(s: Subject, x: Tensor) -> dict[str, Tensor]:
    """By name: the outputs of two calls, y and z, the state after them, and the gradients of their sum."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        half = s.tokens // 2
        y, state = s.run(x[:, :half], s.init_state(s.rows))
        z, state = s.run(x[:, half:], state)
        outputs = torch.cat([y, z], dim=1)
        found = gradients(s, outputs, torch.ones(1, *outputs.shape, dtype=torch.float64, device=s.device), x=x)
    return {"y": y, "z": z} | memory(state) | {GRADIENT + name: tensor for name, tensor in found.items()}


@law("C17", "first values: the same on every way to them, and of the size they should be", of=Solo)
def first_values(s: Solo) -> Iterator[Result]:
    direct = s.build()
    with torch.device("meta"):
        later = s.mixer(s.config, s.width)
    later.to_empty(device="cpu")
    for tensor in later.state_dict().values():
        tensor.fill_(torch.nan)
    later.reset_parameters(Streams(3))
    for name, tensor in direct.state_dict().items():
        yield same(f"meta -> to_empty -> reset_parameters: {name}", later.state_dict()[name], tensor)
        yield holds(f"{name} is finite", bool(tensor.isfinite().all()), "not finite")
    later.reset_parameters(Streams(4))
    for name in [name for name, _ in direct.named_parameters() if name.endswith("_proj.weight")]:
        seeded = not torch.equal(later.state_dict()[name], direct.state_dict()[name])
        yield holds(f"{name} depends on the seed", seeded, "same values")
    yield from reasonable(s, direct)


def reasonable(s: Solo, mixer: torch.nn.Module) -> Iterator[Result]:
    """dt between 1e-4 and 0.2, -A at least 0.01, and outputs neither silent nor loud."""
    for name, dt in step_sizes(mixer):
        fine = dt.min() >= 0.99e-4 and dt.max() <= 0.2
        yield holds(f"dt of {name}", bool(fine), f"from {dt.min():.1e} to {dt.max():.1e}; it should lie in 1e-4 .. 0.2")
    for name, parameter in mixer.named_parameters():
        if called(name, LOG_RATES):
            rate = parameter.detach().double().exp()
            yield holds(f"-A of {name}", bool(rate.min() >= 0.01), f"as small as {rate.min():.1e}")
    twin = s.twin()
    twin.module.load_state_dict(mixer.state_dict())
    loud = twin.run(s.draw(8, 64, 17))[0].double().square().mean().sqrt().item()
    yield holds("RMS of the outputs", 1e-3 <= loud <= 10, f"{loud:.1e} for inputs of RMS 1; not in 1e-3 .. 10")


@law("C19", "every parameter that must not be decayed says so", of=Solo)
def optimiser_groups(s: Solo) -> Iterator[Result]:
    parameters, groups = dict(s.module.named_parameters()), s.mixer.param_groups
    for name, group in groups.items():
        yield holds(f"param_groups {name}", name in parameters, "no such parameter")
        unknown = set(group) - {"weight_decay", "lr_max"}
        yield holds(f"param_groups {name}: settings", not unknown, f"unknown: {', '.join(sorted(unknown))}")
    for name in parameters:
        if called(name, UNDECAYED):
            yield holds(name, groups.get(name, {}).get("weight_decay") == 0, "not in param_groups with weight_decay 0")
    for name in s.mixer.residual_projections:
        yield holds(f"residual_projections {name}", f"{name}.weight" in parameters, "no such projection")


@law("C22", "weights that change are heard at once", of=Solo)
def staleness(s: Solo) -> Iterator[Result]:
    used, x = s.twin(), s.scene
    for _ in range(2):
        used.run(x)
        used.run(x[:, :1], used.run(x, used.init_state(s.rows))[1])
    other = {name: 0.7 * tensor for name, tensor in s.module.state_dict().items()}
    fresh = s.twin()
    fresh.module.load_state_dict(other)
    changes = {"in place": in_place, "through .data": through_data, "load_state_dict": torch.nn.Module.load_state_dict}
    for case, change in changes.items():
        used.module.load_state_dict(s.module.state_dict())
        used.run(x)
        used.run(x[:, :1], used.init_state(s.rows))
        change(used.module, other)
        yield same(case, used.run(x)[0], fresh.run(x)[0])
        for label, t in (("with a state", s.tokens), ("one token", 1)):
            got, want = (subject.run(x[:, :t], subject.init_state(s.rows))[0] for subject in (used, fresh))
            yield same(f"{case}, {label}", got, want)


def in_place(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])


def through_data(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.data = weights[name].clone()
