"""What MODEL means on the command line: a YAML file, the name of a shipped one, a run folder, or a pattern."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlm.cli.complain import UsageError
from hybridlm.errors import CheckpointError, PatternError, SpecError, did_you_mean
from hybridlm.resources import config_names, config_path

if TYPE_CHECKING:
    from hybridlm.compose.spec import ModelSpec

SUFFIXES = (".yaml", ".yml")
WIDTH, VOCABULARY = 256, 256


def read_spec(model: str, *, d_model: int | None = None, vocab_size: int | None = None) -> ModelSpec:
    """The spec that MODEL means, with the given width and vocabulary.

    UsageError: a file that is not there, with the nearest that is. SpecError, PatternError, CheckpointError: what is
    wrong in it.
    """
    from hybridlm.compose.spec import ModelSpec

    given = {key: value for key, value in {"d_model": d_model, "vocab_size": vocab_size}.items() if value is not None}
    path = model_path(model)
    if path is None:
        return _of_pattern(model, {"d_model": WIDTH, "vocab_size": VOCABULARY, **given})
    return replace(_saved_spec(path) if path.is_dir() else ModelSpec.read(path), **given)


def _of_pattern(pattern: str, sizes: dict[str, int]) -> ModelSpec:
    """The spec of a pattern; where it cannot be read, what else the word may have meant."""
    from hybridlm.compose.plan import plan
    from hybridlm.compose.spec import ModelSpec

    spec = ModelSpec(**sizes, pattern=pattern)
    try:
        plan(spec)
    except PatternError as error:
        if pattern and os.path.isdir(pattern):
            raise UsageError(f"{pattern}: a folder that holds no saved model and no run") from error
        if "[" not in pattern and (meant := did_you_mean(pattern, _models())):
            raise UsageError(f"{error}\nShipped models have names too.{meant}") from error
        raise
    return spec


def model_path(model: str) -> Path | None:
    """The file or folder that MODEL names, or None where it is a pattern."""
    path = Path(model)
    if f"models/{model}.yaml" in _shipped():
        return config_path(f"models/{model}")
    if path.is_file() or (path.is_dir() and ("/" in model or _is_saved(path))):
        return path
    if not (model.endswith(SUFFIXES) or "/" in model or os.sep in model):
        return None
    try:
        return config_path(model)
    except SpecError:
        found = "a folder that holds no saved model and no run" if path.is_dir() else f"no such file.{_nearest(path)}"
        raise UsageError(f"{model}: {found}") from None


def _is_saved(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file()


def _saved_spec(folder: Path) -> ModelSpec:
    """The spec of a run folder, or of one that hl.save wrote."""
    from hybridlm.compose.build import CONFIG, model_folder
    from hybridlm.compose.spec import ModelSpec

    file = model_folder(folder) / CONFIG
    try:
        return ModelSpec.from_dict(json.loads(file.read_text(encoding="utf-8"))["spec"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: it holds no spec ({error!r})") from error


def _nearest(path: Path) -> str:
    """The nearest file beside it, or the nearest shipped one."""
    beside = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
    models = _models()
    shipped = f" Shipped models: {', '.join(models)}." if models else ""
    return did_you_mean(path.name, beside) or did_you_mean(path.stem, models) or shipped


def _models() -> list[str]:
    return [name.removeprefix("models/").removesuffix(".yaml") for name in _shipped() if name.startswith("models/")]


def _shipped() -> tuple[str, ...]:
    try:
        return config_names()
    except SpecError:  # an installation without its configs can still read the user's own
        return ()
