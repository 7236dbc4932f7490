"""Programs as files of torch.export, which run wherever PyTorch is: prefill.pt2 and step.pt2."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError
from hybridlm.export.lower import Lowered
from hybridlm.export.program.agreement import Run, compare
from hybridlm.export.program.describe import PIECE, PROGRAMS, ready, write_description
from hybridlm.export.program.interface import interface_of
from hybridlm.export.program.trace import trace
from hybridlm.files import as_path, changing

SUFFIX, DESCRIPTION = ".pt2", "torch-export.json"
TARGET = "torch-export"


def write_torch_export(
    model: HybridLM,
    out: str | Path,
    *,
    piece: int = PIECE,
    replaces: Iterable[str] = (),
    beside: Callable[[Path, Lowered], None] | None = None,
) -> Lowered:
    """Write prefill.pt2, step.pt2 and torch-export.json, which names what goes in and comes out, into the folder `out`.

    prefill(ids (b, t), valid (b, t), *state) -> logits (b, t, v), *state; step(ids (b, 1), *state) -> logits (b, 1, v),
    *state: in float32, on the CPU, for every b, t and capacity. They are read back and compared with the model.

    piece: tokens that prefill takes at a time; changes speed, not results. replaces, beside: as of `lower`.

    ExportError: a head or a layer of which there is no program, or they are not the model. `out` is then as it was.
    """
    out = as_path(out, ExportError)
    ours = ready(model, piece)
    interface = interface_of(ours)
    programs = trace(ours, interface, piece)
    with changing(out, replaces=replaces) as staged:
        for name, program in programs.items():
            torch.export.save(program, staged / f"{name}{SUFFIX}")
        proof = compare(ours, interface, {name: _read(staged / f"{name}{SUFFIX}") for name in PROGRAMS})
        proof.require(TARGET, "torch")
        write_description(staged / DESCRIPTION, ours, interface, SUFFIX, proof)
        lowered = Lowered(TARGET, proof)
        if beside is not None:
            beside(staged, lowered)
    return lowered


def _read(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: list(program(*inputs))
