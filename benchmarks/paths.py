"""hybridlm's own paths: compiled blocks, a training step in a CUDA graph, generation in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import hybridlm as hl
from benchmarks.contest import Entry


def compiled(model: hl.HybridLM) -> str:
    """Compile the blocks in place, each shape for itself; the label."""
    hl.compile(model, dynamic=False)
    return "compiled"


def captured_step(model: nn.Module, loss: Callable[[], Tensor], under: Callable, device: str, label: str) -> Entry:
    """The whole step as one CUDA graph, captured when a block of calls begins and dropped when it ends.

    A graph keeps the memory of all its activations, which the others need meanwhile.
    """
    if not device.startswith("cuda"):
        raise NotImplementedError("CUDA graphs need a GPU")
    from benchmarks.train import optimizer

    adam, held = optimizer(model, device, capturable=True), {}

    def step() -> None:
        with under():
            value = loss()
        value.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    def enter() -> None:
        _warm(step, device)
        held["graph"] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(held["graph"]):
            step()

    def leave() -> None:
        held.clear()
        model.zero_grad(set_to_none=True)

    return Entry(lambda: held["graph"].replay(), f"{label}, CUDA graph", enter=enter, leave=leave)


def _warm(step: Callable[[], None], device: str) -> None:
    """On a side stream, as capture wants it."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)


def generator(model: hl.HybridLM, path: str) -> tuple[Callable[[Tensor, int], Tensor], str]:
    """(ids, new) -> ids with `new` more, greedily, and the label."""
    if path == "eager":
        return partial(_generate, model), "eager"
    label = compiled(model)
    if path == "graph":
        raise NotImplementedError("generation in a CUDA graph is not there yet")
    return partial(_generate, model), label


def _generate(model: hl.HybridLM, ids: Tensor, new: int) -> Tensor:
    return hl.generate(model, ids, max_new_tokens=new)


def reader(model: hl.HybridLM, path: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """ids -> (b, v) logits of the last token with the state filled, and the label."""
    from benchmarks.inference import read_eagerly

    if path == "eager":
        return partial(read_eagerly, model), "eager"
    label = compiled(model)
    if path == "graph":
        raise NotImplementedError("prefill in a CUDA graph is not there")
    return partial(read_eagerly, model), label
