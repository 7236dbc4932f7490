"""The graphs of both programs, by torch.export: for every batch, length and capacity, of PyTorch's own operations."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError
from hybridlm.export.program.flow import Advance, Prefill, Step
from hybridlm.export.program.interface import CAPACITY, ROWS, SYMBOLS, TOKENS, Interface, Port
from hybridlm.export.program.real import Real, needed
from hybridlm.ops import backend


def trace(model: HybridLM, interface: Interface, piece: int) -> dict[str, ExportedProgram]:
    """{"prefill": its graph, "step": its graph}. The model has no dropout on, and no gradients.

    ExportError: a layer does what cannot be said as one graph for all sizes, or uses an op that PyTorch does not have.
    """
    with _plainly():
        return _both({"prefill": Advance(model), "step": Advance(model)}, interface, piece)


def trace_real(model: HybridLM, interface: Interface, piece: int) -> dict[str, ExportedProgram]:
    """The same for ONNX: without what it does not have, see `real`."""
    programs = trace(model, interface, piece)
    if not any(map(needed, programs.values())):
        return programs
    with _plainly():
        advance, state = Advance(model), interface.state
        prompt, valid = (replace(port, shape=(ROWS, piece, *port.shape[2:])) for port in interface.read["prefill"])
        pieces = _traced(advance, (prompt, valid, *state), piece)
        steps = _traced(advance, (*interface.read["step"], None, *state), piece)
        return _both({"prefill": Real(model, pieces), "step": Real(model, steps)}, interface, piece)


@contextmanager
def _plainly() -> Iterator[None]:
    with backend.use("reference"), torch.no_grad():
        yield


def _both(advances: dict[str, Advance | Real], interface: Interface, piece: int) -> dict[str, ExportedProgram]:
    modules = {"prefill": Prefill(advances["prefill"], piece), "step": Step(advances["step"])}
    programs = {name: _traced(module, interface.inputs(name), piece) for name, module in modules.items()}
    if found := sorted({op for program in programs.values() for op in foreign(program)}):
        raise ExportError(f"a program runs where PyTorch is alone, and this model uses {', '.join(found)}")
    return programs


def _traced(module: nn.Module, ports: tuple[Port | None, ...], piece: int) -> ExportedProgram:
    """For all sizes. Every module here takes its last arguments, the state, as one."""
    sizes = {ROWS: 2, TOKENS: 2 * piece + 1, CAPACITY: 3 * piece + 5}  # no two alike: a size stands for itself alone
    dims = {symbol: Dim(symbol, min=1) for symbol in SYMBOLS}
    shapes = [None if port is None else {axis: dims[n] for axis, n in port.dims().items()} for port in ports]
    named = len(inspect.signature(module.forward).parameters) - 1
    try:
        return torch.export.export(
            module,
            tuple(port and port.zeros(sizes) for port in ports),
            dynamic_shapes=(*shapes[:named], tuple(shapes[named:])),
            strict=False,
        )
    except RuntimeError as error:  # what torch.export raises is of many kinds
        said = str(error).strip().splitlines()[0]
        raise ExportError(f"a layer cannot be traced for every batch and length: {said}") from error


def foreign(program: ExportedProgram) -> list[str]:
    """Ops that PyTorch alone does not have, those in loops too."""
    graphs = (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))
    ops = {node.target for graph in graphs for node in graph.graph.nodes if isinstance(node.target, OpOverload)}
    return sorted(str(op) for op in ops if op.namespace not in ("aten", "prims"))
