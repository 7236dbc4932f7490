"""The graphs of both programs, by torch.export: for every batch, length and capacity, of PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError
from hybridlm.export.program.flow import Prefill, Step
from hybridlm.export.program.interface import CAPACITY, ROWS, SYMBOLS, TOKENS, Interface, Port
from hybridlm.ops import backend

KNOWN = {"aten", "prims", "prim", "higher_order", "_operator", "math"}


def trace(model: HybridLM, interface: Interface, piece: int) -> dict[str, ExportedProgram]:
    """{"prefill": its graph, "step": its graph}. The model has no dropout on, and no gradients.

    ExportError: a layer does what cannot be said as one graph for all sizes, or uses an op that PyTorch does not have.
    """
    modules = {"prefill": Prefill(model, piece), "step": Step(model)}
    with backend.use("reference"), torch.no_grad():
        programs = {name: _traced(name, module, interface, piece) for name, module in modules.items()}
    for name, program in programs.items():
        if foreign := sorted({op for op in _ops(program) if op.partition(".")[0] not in KNOWN}):
            raise ExportError(f"{name}: a program runs where PyTorch is alone, and this model uses {', '.join(foreign)}")
    return programs


def _traced(name: str, module: torch.nn.Module, interface: Interface, piece: int) -> ExportedProgram:
    sizes = {ROWS: 2, TOKENS: 2 * piece + 1, CAPACITY: 3 * piece + 5}  # no two alike: a size stands for itself alone
    ports = interface.inputs(name)
    read = len(interface.read[name])
    dims = {symbol: Dim(symbol, min=1) for symbol in SYMBOLS}
    shapes = [_dynamic(port, dims) for port in ports]
    try:
        return torch.export.export(
            module,
            tuple(port.zeros(sizes) for port in ports),
            dynamic_shapes=(*shapes[:read], tuple(shapes[read:])),
            strict=False,
        ).run_decompositions({})
    except RuntimeError as error:  # what torch.export raises is of many kinds
        said = str(error).strip().splitlines()[0]
        raise ExportError(f"{name}: a layer cannot be traced for every batch and length: {said}") from error


def _dynamic(port: Port, dims: dict[str, Dim]) -> dict[int, Dim]:
    return {axis: dims[symbol] for axis, symbol in port.dims().items()}


def _ops(program: ExportedProgram) -> Iterator[str]:
    """The names of all ops, of those in loops too."""
    graphs = (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))
    for node in (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"):
        target = node.target
        if isinstance(target, torch._ops.OperatorBase):
            yield str(target).replace("::", ".")
        else:
            yield f"{target.__module__}.{target.__name__}"
