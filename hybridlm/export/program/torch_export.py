"""Programs as files of torch.export, which run wherever PyTorch is: prefill.pt2 and step.pt2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.export.lower import Beside, Lowered
from hybridlm.export.program.agreement import Run
from hybridlm.export.program.describe import PIECE
from hybridlm.export.program.interface import Port
from hybridlm.export.program.trace import trace
from hybridlm.export.program.write import Form, write_programs


def write_torch_export(
    model: HybridLM,
    out: str | Path,
    *,
    piece: int = PIECE,
    replaces: Iterable[str] = (),
    beside: Beside | None = None,
) -> Lowered:
    """Write prefill.pt2, step.pt2 and torch-export.json, which names what goes in and comes out, into the folder `out`.

    prefill(ids (b, t), valid (b, t), *state) -> logits (b, t, v), *state; step(ids (b, 1), *state) -> logits (b, 1, v),
    *state: in float32, on the CPU, for every b, t and capacity. They are read back and compared with the model.

    piece: tokens that prefill takes at a time; changes speed, not results. replaces, beside: as of `lower`.

    ExportError: a head or a layer of which there is no program, or they are not the model. `out` is then as it was.
    """
    return write_programs(model, out, FORM, piece=piece, replaces=replaces, beside=beside)


def _write(program: ExportedProgram, path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    torch.export.save(program, path)


def _read(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: list(program(*inputs))


FORM = Form("torch-export", ".pt2", "torch", trace, _write, _read)
