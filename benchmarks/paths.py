"""hybridlm's own paths: compiled blocks, a training step in a CUDA graph, reading and writing in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import hybridlm as hl
from benchmarks.contest import Entry
from benchmarks.timing import free
from hybridlm.infer import Decoder
from hybridlm.infer.decoder import PROMPT
from hybridlm.train.graphs import WARM_UP, TrainStep, require_graph

TRAINING = ("eager", "compile", "graph")
INFERENCE = ("eager", "graph", "compile")
"""From the plainest on. In training `graph` is compiled blocks in a CUDA graph; in inference `compile` is."""


def compiled(model: hl.HybridLM, *, dynamic: bool | None = False) -> str:
    """Compile the blocks in place, by default each shape for itself; the label."""
    hl.compile(model, dynamic=dynamic)
    return "compiled"


def captured_step(
    model: hl.HybridLM, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], autocast: torch.dtype | None
) -> Entry:
    """The whole step as one CUDA graph, captured when a block of calls begins and dropped when it ends.

    A graph keeps the memory of all its activations, which the others need meanwhile.
    """
    require_graph(batch["ids"].device, all(group["fused"] for group in optimizer.param_groups))
    held: dict[str, TrainStep] = {}

    def enter() -> None:
        held["step"] = TrainStep(model, optimizer, autocast=autocast, graph=True)
        for _ in range(WARM_UP + 1):
            held["step"](batch)

    enter()  # so that a failure is seen here
    held.clear()
    free(str(batch["ids"].device))
    return Entry(lambda: held["step"](batch), "compiled, CUDA graph", enter=enter, leave=held.clear)


def generator(model: hl.HybridLM, path: str, room: int) -> tuple[Callable[[Tensor, int], Tensor], str]:
    """(ids, new) -> ids with `new` more, greedily, and the label. room: the most new tokens; states have one size."""
    labels = {"eager": "eager", "graph": "CUDA graph"}
    graph = path == "graph" or (path == "compile" and model.embed.weight.is_cuda)
    label = labels[path] if path in labels else compiled(model, dynamic=False if graph else None)

    def generate(ids: Tensor, new: int) -> Tensor:
        decoder = Decoder(model, model.init_state(len(ids), ids.shape[1] + room), cuda_graph=graph)
        tokens = decoder.read(ids)[:, None].clone()
        return torch.cat([ids, tokens, decoder.decode(new - 1)] if new > 1 else [ids, tokens], dim=1)

    return generate, f"{label}, CUDA graph" if path == "compile" and graph else label


def reader(model: hl.HybridLM, path: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """ids -> what comes after them with the state filled: logits, or tokens from a graph; and the label.

    Prompts of more than PROMPT tokens are launched, as `generate` does; the others replayed in the same memory.
    """
    if path == "eager":
        return lambda ids: read_eagerly(model, ids), "eager"
    label, held = compiled(model) if path == "compile" else "", {}
    if not model.embed.weight.is_cuda and path == "compile":
        return lambda ids: read_eagerly(model, ids), label

    def read(ids: Tensor) -> Tensor:
        if ids.numel() > PROMPT:
            return read_eagerly(model, ids)
        if ids.shape not in held:
            held.clear()
            held[ids.shape] = Decoder(model, model.init_state(len(ids), ids.shape[1] + 1), cuda_graph=True)
        held[ids.shape].restart()
        return held[ids.shape].read(ids)

    return read, ", ".join(filter(None, [label, f"CUDA graph up to {PROMPT:,} tokens"]))


def read_eagerly(model: hl.HybridLM, ids: Tensor) -> Tensor:
    """(b, v) logits of the last token, through a fresh state with room for one more."""
    with torch.inference_mode():
        x, _ = model.hidden(ids, model.init_state(len(ids), ids.shape[1] + 1))
        return model.logits(x[:, -1])
