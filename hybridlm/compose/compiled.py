"""A model's blocks, compiled where they stand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.utils.checkpoint import CheckpointPolicy

from hybridlm.checks import real
from hybridlm.compose.model import HybridLM
from hybridlm.errors import SpecError
from hybridlm.ops.flops import KEPT_OPS, tell

KINDS_OF_CALLS = 256
"""How many ways of calling all blocks of a process may be compiled: kinds of blocks, times with and without gradients,
a state, documents, pads, one token. PyTorch stops at 8, and under fullgraph stopping is an error."""


MEMORY = 0.8
"""Of what a block would keep: pointwise operations, norms of its input, short convolutions are then computed again.
On an H200 `(MMMA)12` of width 1024 at 8 x 4096 takes 33 GiB with it and 42 with all, and at most 3% more time."""


def compile(
    model: HybridLM,
    *,
    backend: str | Callable = "inductor",
    dynamic: bool | None = None,
    fullgraph: bool = True,
    memory: float = MEMORY,
) -> HybridLM:
    """Compile every block of the model in place, with torch.compile; returns the model.

    Training, prefill and decoding all use it. Blocks that are alike share what is compiled, so compile time is that of
    the kinds of blocks and not of the depth. Names in the state_dict, hooks and the model's calls stay as they are.

    backend:   of torch.compile.
    dynamic:   None: the first length is compiled as it is, and the next other one for all lengths; False: each length
               (and batch) for itself, which is what fixed shapes in a process with several models want; what a cache of
               keys holds is a length too, so decoding is compiled anew for every token, but once in a CUDA graph.
    fullgraph: a graph break is an error. There is none in what hybridlm ships.
    memory:    the share, 0 to 1, of what a block would keep for its backward pass that it may keep; what is cheapest is
               computed again, recurrences and attention never (`model.checkpoint_blocks` does that).

    SpecError: not a HybridLM, or no share.
    """
    if not isinstance(model, HybridLM):
        raise SpecError(f"compile: a {type(model).__name__}; it takes a model from hybridlm.build or hybridlm.load")
    _make_room()
    tell()
    compiler = _compiler(backend, real("memory", memory, 0.0, 1.0))
    for part in (*model.blocks, model.final_norm):
        part.compile(backend=compiler, dynamic=dynamic, fullgraph=fullgraph)
    return model


@cache  # blocks share what is compiled only where they share the compiler
def _compiler(backend: str | Callable, memory: float) -> Callable:
    """The backend with a budget for what is kept for the backward pass."""
    compile_graph = torch._dynamo.lookup_backend(backend) if isinstance(backend, str) else backend
    keep = KeepOps()

    def compiler(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        budget = torch._functorch.config.patch(activation_memory_budget=memory)
        # Rows padded to whole cache lines would be copied before every custom op, which is told their strides.
        ours = torch._inductor.config.patch(joint_custom_post_pass=keep, comprehensive_padding=False)
        with budget, ours:
            return compile_graph(graph, inputs)

    return compiler


class KeepOps(CustomGraphPass):
    """Marks what is never computed again in a backward pass, as no budget is worth it: recurrences and attention."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if getattr(node.target, "_overloadpacket", node.target) in KEPT_OPS:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> str:
        return f"hybridlm keeps {sorted(map(str, KEPT_OPS))}"


def _make_room() -> None:
    """Raise PyTorch's limits on recompilation, which are those of a process, to what hybrid models need."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, KINDS_OF_CALLS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * KINDS_OF_CALLS)
