"""From a spec to a model, and between a model and a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridlm import __version__
from hybridlm.checks import integer, whole
from hybridlm.compose.cost import stack_cost
from hybridlm.compose.memory import require_device, require_dtype, require_memory
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import CheckpointError, SpecError
from hybridlm.files import MANIFEST, as_path, changing, verify_manifest, write_manifest
from hybridlm.shards import FORMS, INDEX, MAX_BYTES, WEIGHTS, ShardReader, entries_of, write_shards

CONFIG = "config.json"
FORMAT = 1


def build(
    source: str | Path | Mapping[str, Any] | ModelSpec | None = None,
    /,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    **spec: Any,
) -> HybridLM:
    """A model with fresh weights.

    source: a YAML file, a ModelSpec or a mapping; or give the same keys as keywords: `build(pattern="(M3A)2",
    d_model=256, vocab_size=256)`. Keywords beside a source change it. device: "meta" builds without memory; then
    `model.to_empty(device=...)` and `model.init_weights(seed)`. seed: of the weights; without one torch's own decides.

    PatternError, SpecError: what is wrong, where, and what is allowed; nothing was allocated.
    """
    device, dtype = require_device(device), require_dtype(dtype)
    seed = None if seed is None else integer("seed", seed)
    stack = plan(as_spec(source, **spec))
    nbytes = stack_cost(stack).parameters * dtype.itemsize
    require_memory(nbytes, device, f"the model {stack.spec.pattern[:80]} of width {stack.spec.d_model}")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # a seeded build leaves torch's generator alone
        model = HybridLM(stack).to(dtype)
    if device.type != "meta":
        model = model.to_empty(device=device)
        model.init_weights(seed)
    return model


def as_spec(source: str | Path | Mapping[str, Any] | ModelSpec | None = None, /, **changes: Any) -> ModelSpec:
    """The spec that a file, a mapping or keywords describe."""
    if source is None:
        return ModelSpec.from_dict(changes)
    if isinstance(source, ModelSpec | Mapping):
        given = source.to_dict() if isinstance(source, ModelSpec) else dict(source)
        return ModelSpec.from_dict({**given, **changes})
    if isinstance(source, str | Path):
        spec = ModelSpec.read(source)
        return ModelSpec.from_dict({**spec.to_dict(), **changes}) if changes else spec
    raise SpecError(f"a {type(source).__name__} is no spec; give a YAML file, a ModelSpec, a mapping, or keywords")


def save(model: HybridLM, folder: str | Path, *, max_shard_bytes: int = MAX_BYTES) -> None:
    """Write weights, resolved spec and a manifest of sha256 into a folder.

    max_shard_bytes: of tensors in one file; a larger model has several, and an index, as on the Hub. A model that is
    there already is replaced as a whole, or, on a full disk say, stays as it is and OSError is raised.
    """
    if not isinstance(model, HybridLM):
        raise SpecError(f"a {type(model).__name__} is no HybridLM; save takes a model that hybridlm built")
    require_weights(model)
    whole("max_shard_bytes", max_shard_bytes, high=1 << 62)
    weights = model.state_dict().items()
    with changing(as_path(folder), replaces=FORMS) as staged:
        files = write_shards(staged, entries_of(weights), weights, max_bytes=max_shard_bytes)
        (staged / CONFIG).write_text(config_text(model.spec))
        write_manifest(staged, [*files, CONFIG])


def require_weights(model: HybridLM, error: type[ValueError] = CheckpointError) -> None:
    """`error` for a model on the meta device."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise error("the model has no weights yet: it was built on the meta device; call to_empty, init_weights")


def config_text(spec: ModelSpec, more: Mapping[str, Any] | None = None) -> str:
    """What config.json says of a model in our own format. more: further fields, for other readers."""
    about = {"model_type": "hybridlm", "format": FORMAT, "version": __version__, "spec": spec.to_dict()}
    return json.dumps({**about, **(more or {})}, indent=2)


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> HybridLM:
    """The model in a folder that `save` wrote, or in a run folder, in the dtypes that it was saved in.

    Tensors are read one by one: beside the model, one of them is in memory. CheckpointError: nothing there, a damaged
    file, or weights that do not fit the spec, all of it listed at once.
    """
    device = require_device(device)
    saved = read_saved(folder)
    model = empty_model(saved)
    weights = {name: tensor.to(device, copy=True) for name, tensor in saved.weights}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True)


class Saved(NamedTuple):
    """A saved model whose files have been verified, and whose tensors can be read one by one."""

    folder: Path
    spec: dict[str, Any]
    weights: ShardReader


def read_saved(folder: str | Path) -> Saved:
    """What a folder that `save` wrote, or a run folder, holds. CheckpointError: nothing there, or a damaged file."""
    folder = model_folder(folder)
    listed = verify_manifest(folder, [CONFIG])
    weights = ShardReader(folder / (INDEX if INDEX in listed else WEIGHTS))
    unlisted = [path.name for path in weights.files if path.name not in listed]
    if unlisted:
        raise CheckpointError(f"{folder}: not in {MANIFEST}: {', '.join(unlisted)}")
    return Saved(folder, _saved_spec(folder), weights)


def _saved_spec(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / CONFIG).read_bytes())
        found, spec = about["format"], about["spec"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not the config of a saved model ({error!r})") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder}: saved in format {found}; this hybridlm reads format {FORMAT}")
    return spec


def model_folder(folder: str | Path) -> Path:
    """The folder itself, or its subfolder `model`, where a run keeps its weights."""
    folder = as_path(folder)
    found = next((place for place in (folder, folder / "model") if (place / CONFIG).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: {_no_model(folder)}")
    return found


def _no_model(folder: Path) -> str:
    if folder.is_file():
        return "a file; give a folder, of a run or of a saved model"
    return f"no {CONFIG} in it; not a saved model or a run" if folder.exists() else "no such folder"


def empty_model(saved: Saved) -> HybridLM:
    """A saved model without its weights, on the meta device.

    CheckpointError that lists every missing, surplus and misshapen tensor, unless the weights fit the spec.
    """
    model = build(saved.spec, device="meta")
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: entry.shape for name, entry in saved.weights.entries.items()}
    faults = [f"{name}: missing" for name in wanted if name not in given]
    faults += [f"{name}: not in the model" for name in given if name not in wanted]
    faults += [
        f"{name}: shape {given[name]}, the model has {wanted[name]}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    if faults:
        raise CheckpointError(f"{saved.folder}: the weights do not fit the spec:\n  " + "\n  ".join(faults))
    return model
