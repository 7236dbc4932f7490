"""What is exported: the model of a run or of a saved folder, in the dtype asked for, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hybridlm.compose.build import CONFIG, load, model_folder
from hybridlm.compose.model import HybridLM
from hybridlm.errors import CheckpointError, ExportError

RUN_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Original:
    """A model, and the folder that it was read from.

    context: tokens of the windows that it was trained on; None where no run says so.
    """

    folder: Path
    model: HybridLM
    context: int | None


def read_original(run: str, dtype: torch.dtype | None = None) -> Original:
    """The model of a run folder, or of one that `hl.save` wrote. dtype: of its weights; None leaves them as they are.

    ExportError: `run` is none of these, or a weight is not finite. CheckpointError: it is damaged.
    """
    folder = _folder(run)
    model = load(folder).eval()
    _require_finite(model, f"{run}: ")
    if dtype is not None:
        model.to(dtype)
        _require_finite(model, f"{run}: in {str(dtype).removeprefix('torch.')} ")
    return Original(folder, model, _context(folder))


def _folder(run: str) -> Path:
    """The folder of a model of ours; of what has no weights, what to do first."""
    path = Path(run)
    if path.is_file():
        raise ExportError(
            f"{run}: a file; an export is made of weights, which a run folder has, or a folder that hl.save wrote: "
            f"train one with hybridlm fit --model.spec {run}"
        )
    if not path.exists():
        raise ExportError(
            f"{run}: no such folder; give a run, such as runs/tiny/0, or a folder that hl.save wrote. A pattern has no "
            'weights yet: hl.save(hl.build(pattern="...", d_model=..., vocab_size=...), FOLDER) draws some'
        )
    kind = _model_type(model_folder(path) / CONFIG)
    if kind not in (None, "hybridlm"):
        raise CheckpointError(f"{run}: a checkpoint of {kind}, not of hybridlm; `hybridlm import {run} OUT` reads it")
    return path


def _model_type(path: Path) -> Any:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # load says what is wrong with it
    return about.get("model_type") if isinstance(about, dict) else None


def _context(folder: Path) -> int | None:
    """data.context of the run that a folder is, or is the model of."""
    for place in (folder, folder.parent) if folder.name == "model" else (folder,):
        if (place / RUN_CONFIG).is_file():
            try:
                context = yaml.safe_load((place / RUN_CONFIG).read_text(encoding="utf-8"))["data"]["context"]
            except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
                return None
            return context if type(context) is int and context > 0 else None
    return None


def _require_finite(model: HybridLM, where: str) -> None:
    bad = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ExportError(f"{where}{bad[0]}{more}: NaN or infinite; no export could be proved equal to that")
