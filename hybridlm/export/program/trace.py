"""The graphs of both programs, by torch.export: for every batch, length and capacity, of PyTorch's own operations."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError
from hybridlm.export.program.flow import Prefill, Step
from hybridlm.export.program.interface import CAPACITY, ROWS, SYMBOLS, TOKENS, Interface, Port
from hybridlm.ops import backend


def trace(model: HybridLM, interface: Interface, piece: int) -> dict[str, ExportedProgram]:
    """{"prefill": its graph, "step": its graph}. The model has no dropout on, and no gradients.

    ExportError: a layer does what cannot be said as one graph for all sizes, or uses an op that PyTorch does not have.
    """
    modules = {"prefill": Prefill(model, piece), "step": Step(model)}
    with backend.use("reference"), torch.no_grad():
        programs = {name: _traced(name, module, interface, piece) for name, module in modules.items()}
    for name, program in programs.items():
        if foreign := _foreign(program):
            raise ExportError(
                f"{name}: a program runs where PyTorch is alone, and this model uses {', '.join(foreign)}"
            )
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
        )
    except RuntimeError as error:  # what torch.export raises is of many kinds
        said = str(error).strip().splitlines()[0]
        raise ExportError(f"{name}: a layer cannot be traced for every batch and length: {said}") from error


def _dynamic(port: Port, dims: dict[str, Dim]) -> dict[int, Dim]:
    return {axis: dims[symbol] for axis, symbol in port.dims().items()}


def _foreign(program: ExportedProgram) -> list[str]:
    """Ops that PyTorch alone does not have, those in loops too."""
    graphs = (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))
    ops = {node.target for graph in graphs for node in graph.graph.nodes if isinstance(node.target, OpOverload)}
    return sorted(str(op) for op in ops if op.namespace not in ("aten", "prims"))
