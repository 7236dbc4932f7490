"""torch.compile and activation checkpointing: they change when things are computed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridlm.testing.gradients import compare, gradients, weighted
from hybridlm.testing.laws.law import law
from hybridlm.testing.laws.learning import cases, through_state
from hybridlm.testing.result import Result, holds, measured, same
from hybridlm.testing.script import Call
from hybridlm.testing.subject import Solo

LENGTHS, MORE = (35, 41, 46, 39), 2
"""Lengths of one octave and of as many chunks of 16, for loops over these are written out; and how many times more than
the first a mixer may be compiled for them."""


@law("C20", "compiled: the same numbers, no graph break, few recompilations; recomputed: the same gradients", of=Solo)
def compiled(s: Solo) -> Iterator[Result]:
    """What is traced is the same in every dtype, so float32 speaks for all."""
    with torch.enable_grad():
        yield from recomputed(s)
        if s.dtype == torch.float32:
            yield from one_graph(s)
            yield from few_graphs(s)


def recomputed(s: Solo) -> Iterator[Result]:
    """Gradients of a call that is computed again in the backward pass, bit for bit."""
    call = cases(s)["packed and padded"]
    found = []
    for again in (lambda function, *start: function(*start), partial(checkpoint, use_reentrant=False)):
        function, start = through_state(s, call)
        outputs = torch.cat([tensor.double().flatten() for tensor in again(function, *start)])
        named = {f"input {i}": tensor for i, tensor in enumerate(start)}
        found.append(gradients(s, outputs, weighted(outputs), **named))
    for name, gradient in found[0].items():
        yield same(f"checkpointed: {name}", found[1][name], gradient)


def one_graph(s: Solo) -> Iterator[Result]:
    """fullgraph=True, so that a graph break raises: a call from a state, with gradients, and decoding without."""
    with traced(s) as (twin, _):
        run = partial(_gradients, call=cases(s)["packed and padded"])
        yield from compare("compiled, packed and padded", twin, run, s.limit)
        with torch.no_grad():
            y, state = twin.run(s.scene[:, :20], twin.init_state(s.rows))
            yield s.agrees("compiled, without gradients", y, lambda trace: trace.y[:, :20])
            y, _ = twin.run(s.scene[:, 20:21], state)
            yield s.agrees("compiled, one token", y, lambda trace: trace.y[:, 20:21])


def _gradients(twin: Solo, plain: bool, call: Call) -> dict[str, Tensor]:
    function, start = through_state(twin, call, plain)
    outputs = torch.cat([tensor.double().flatten() for tensor in function(*start)])
    named = {f"input {i}": tensor for i, tensor in enumerate(start)}
    return gradients(twin, outputs, weighted(outputs), **named)


def few_graphs(s: Solo) -> Iterator[Result]:
    """Rows of several lengths, trained on."""
    with traced(s) as (twin, graphs):
        for t in LENGTHS:
            x = s.draw(2, t, seed=20)
            yield measured(f"compiled, {t} tokens", twin.run(x)[0].flatten(0, 1), s.run(x)[0].flatten(0, 1), s.limit)
        count = len(graphs)
        yield holds("recompilations over lengths", count <= 1 + MORE, f"{count} graphs for {len(LENGTHS)} lengths")


@contextmanager
def traced(s: Solo) -> Iterator[tuple[Solo, list]]:
    """A twin whose module is compiled, as one graph, without a C++ compiler; and the graphs that are made of it."""
    from torch._dynamo.backends.debugging import aot_eager  # here, as the compiler takes seconds to import

    graphs: list = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    twin = s.twin()
    torch._dynamo.reset()
    several_losses = torch._functorch.config.patch(
        donated_buffer=False
    )  # or a graph would serve one backward pass only
    with torch._dynamo.config.patch(recompile_limit=64), several_losses:
        twin.module.compile(backend=backend, fullgraph=True)
        yield twin, graphs
    torch._dynamo.reset()
