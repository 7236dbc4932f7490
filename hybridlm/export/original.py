"""What is exported: the model of a run or of a saved folder, in the dtype asked for, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from hybridlm.compose.build import CONFIG, load, model_folder
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import Stack, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import CheckpointError, ExportError
from hybridlm.export.tokenizer import Text, text_of
from hybridlm.text import places

RUN_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Original:
    """A model in a folder.

    folder: a run, or what `hl.save` wrote. stack: of its spec. dtype: of the weights to write; None leaves them as they
    are. text: how its ids are text, if they are. context: tokens of the windows it was trained on, if a run says so.
    """

    folder: Path
    stack: Stack
    dtype: torch.dtype | None
    text: Text | None
    context: int | None

    @cached_property
    def model(self) -> HybridLM:
        """The model, read when it is asked for. ExportError: a weight is not finite. CheckpointError: it is damaged."""
        model = load(self.folder).eval()
        _require_finite(model, f"{self.folder}: ")
        if self.dtype is not None:
            model.to(self.dtype)
            _require_finite(model, f"{self.folder}: in {dtype_name(self.dtype)} ")
        return model


def read_original(run: str, dtype: torch.dtype | None = None, tokenizer: str | None = None) -> Original:
    """What a run folder, or one that `hl.save` wrote, says of its model; its weights are not read yet.

    tokenizer: as of `text_of`. ExportError: `run` is no such folder, or the tokenizer does not fit.
    """
    folder = _folder(run)
    stack = _stack(folder)
    return Original(folder, stack, dtype, text_of(folder, stack.spec, tokenizer), _context(folder))


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
    about = _about(path)
    kind = about.get("model_type") if isinstance(about, dict) else None
    if kind not in (None, "hybridlm"):
        raise CheckpointError(f"{run}: a checkpoint of {kind}, not of hybridlm; `hybridlm import {run} OUT` reads it")
    return path


def _about(folder: Path) -> Any:
    """Its config.json; None, if it is none."""
    try:
        return json.loads((model_folder(folder) / CONFIG).read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        return None


def _stack(folder: Path) -> Stack:
    try:
        return plan(ModelSpec.from_dict(_about(folder)["spec"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return plan(load(folder).spec)  # says what is wrong with it


def _context(folder: Path) -> int | None:
    """data.context of the run that a folder is, or is the model of."""
    for place in places(folder):
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
