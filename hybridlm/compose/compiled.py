"""A model's blocks, compiled where they stand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._functorch.config

from hybridlm.checks import real
from hybridlm.compose.model import HybridLM
from hybridlm.errors import SpecError

KINDS_OF_CALLS = 256
"""How many ways of calling all blocks of a process may be compiled: kinds of blocks, times with and without gradients,
a state, documents, pads, one token. PyTorch stops at 8, and under fullgraph stopping is an error."""


def compile(
    model: HybridLM,
    *,
    backend: str | Callable = "inductor",
    dynamic: bool | None = None,
    fullgraph: bool = True,
    memory: float | None = None,
) -> HybridLM:
    """Compile every block of the model in place, with torch.compile; returns the model.

    Training, prefill and decoding all use it. Blocks that are alike share what is compiled, so compile time is that of
    the kinds of blocks and not of the depth. Names in the state_dict, hooks and the model's calls stay as they are.

    backend:   of torch.compile.
    dynamic:   None: the first length is compiled as it is, and the next other one for all lengths; False: each length
               (and batch) for itself, which is what fixed shapes in a process with several models want.
    fullgraph: a graph break is an error. There is none in what hybridlm ships.
    memory:    the share, 0 to 1, of what a block would keep for its backward pass that it may keep; what is cheapest is
               computed again. On an H200, 0.95 took a fifth of the memory off for 1.5% of the time. None: as PyTorch
               is set, to 1 unless someone changed it; it is a setting of the process.

    SpecError: not a HybridLM, or no share.
    """
    if not isinstance(model, HybridLM):
        raise SpecError(f"compile: a {type(model).__name__}; it takes a model from hybridlm.build or hybridlm.load")
    _make_room()
    if memory is not None:
        torch._functorch.config.activation_memory_budget = real("memory", memory, 0.0, 1.0)
    for part in (*model.blocks, model.final_norm):
        part.compile(backend=backend, dynamic=dynamic, fullgraph=fullgraph)
    return model


def _make_room() -> None:
    """Raise PyTorch's limits on recompilation, which are those of a process, to what hybrid models need."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, KINDS_OF_CALLS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * KINDS_OF_CALLS)
