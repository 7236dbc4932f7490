"""What can be a program, and the file that says what goes in and comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hybridlm import __version__
from hybridlm.checks import whole
from hybridlm.compose.build import require_weights
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import ExportError
from hybridlm.export.program.interface import Interface
from hybridlm.export.proof import Proof, in_float32

PIECE = 64
"""Tokens that prefill takes at a time."""
FORMAT = 1


def ready(model: HybridLM, piece: int) -> HybridLM:
    """A copy to be traced: in float32, on the CPU, without dropout and gradients.

    ExportError: no HybridLM, no weights, or a head whose answer a step cannot give.
    """
    if not isinstance(model, HybridLM):
        raise ExportError(f"a {type(model).__name__} is no HybridLM; a program is of a model that hybridlm built")
    whole("piece", piece, low=2, high=1 << 20)
    if said := misfits(model.spec):
        raise ExportError(said[0])
    require_weights(model, ExportError)
    return in_float32(model).requires_grad_(False)


def misfits(spec: ModelSpec) -> list[str]:
    """Why a model cannot be a program; empty: it can."""
    head = spec.output
    if head.pool != "mean" and head.type != "recover":
        return []
    what = "head: recover" if head.type == "recover" else "head.pool: mean"
    return [f"{what} asks for a whole row at once, and a step has one token; use another head"]


def write_description(path: Path, model: HybridLM, interface: Interface, suffix: str, proof: Proof) -> None:
    """Write the file that names symbols, inputs, outputs and the first state."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "hybridlm": __version__,
        "torch": torch.__version__,
        "pattern": model.spec.pattern,
        **interface.to_dict(suffix),
        "verified": {"tokens": proof.tokens, "limit": proof.limit, "errors": dict(proof.errors)},
    }
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
