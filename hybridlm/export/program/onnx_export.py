"""Programs as files of ONNX, which run wherever onnxruntime does: prefill.onnx and step.onnx."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError, UnsupportedError
from hybridlm.export.lower import Beside, Lowered
from hybridlm.export.program.agreement import Run
from hybridlm.export.program.describe import PIECE
from hybridlm.export.program.interface import Port
from hybridlm.export.program.trace import trace_real
from hybridlm.export.program.write import Form, write_programs

OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(
    model: HybridLM,
    out: str | Path,
    *,
    piece: int = PIECE,
    replaces: Iterable[str] = (),
    beside: Beside | None = None,
) -> Lowered:
    """Write prefill.onnx, step.onnx and onnx.json, which names what goes in and comes out, into the folder `out`.

    The same two programs as `write_torch_export` writes, in opset 18. onnxruntime reads them back on the CPU, and they
    are compared with the model. Where a file of ONNX would be too large, its weights lie beside it.

    UnsupportedError: onnx, onnxscript or onnxruntime is not installed. ExportError: as of `write_torch_export`, or ONNX
    has no operator for what a layer does.
    """
    require_packages()
    return write_programs(model, out, FORM, piece=piece, replaces=replaces, beside=beside)


def require_packages() -> None:
    """UnsupportedError unless all that writes and reads ONNX is installed."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UnsupportedError(
                f"programs in ONNX need {name}, which is not installed: pip install 'hybridlm[onnx]'"
            ) from error


def _write(program: ExportedProgram, path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    with _quiet():
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in outputs],
                custom_translation_table={torch.ops.aten.sort.stable: _sort},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{path.stem}: ONNX has no operator for what a layer does: {_cause(error)}") from error
    _name_sizes(converted.model.graph.inputs, inputs)
    _name_sizes(converted.model.graph.outputs, outputs)
    converted.save(path)


def _name_sizes(values: Iterable[Any], ports: Iterable[Port]) -> None:
    """Let axes have the names that the description gives them."""
    import onnx_ir

    for value, port in zip(values, ports, strict=True):
        value.shape = onnx_ir.Shape(port.shape)


def _cause(error: BaseException) -> str:
    """What began a chain of errors, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Along a dimension, stable: of equal ones TopK takes the one that stands first."""
    from onnxscript import opset18 as op

    size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    x = x if x.dtype.is_floating_point() else op.Cast(x, to=7)  # int64: TopK takes no smaller ones
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def _read(path: Path) -> Run:
    """The program in a file, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        given = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says about packages that it would know."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


FORM = Form("onnx", ".onnx", "onnxruntime", trace_real, _write, _read)
