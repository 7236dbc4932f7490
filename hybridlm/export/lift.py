"""Import: a checkpoint of a known family as a spec and weights of ours, streamed tensor by tensor."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import frexp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.build import CONFIG, build, config_text
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import CheckpointError, DataError, ExportError, PatternError, SpecError, did_you_mean
from hybridlm.export.family import FAMILIES, SOURCES, Source, source
from hybridlm.export.fields import Fields, listed
from hybridlm.export.tokenizer import TEXT_FILES
from hybridlm.export.weights import Shape, Weight, require_finite
from hybridlm.files import as_path, changing, write_manifest
from hybridlm.shards import FORMS, Entry, ShardReader, write_shards
from hybridlm.text import TOKENIZER, FileCodec

DERIVED = ("rotary_emb.inv_freq",)  # ends of names that some checkpoints hold, and that follow from the config

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lift(
    folder: str | Path,
    out: str | Path,
    *,
    check: Callable[[Path], None] | None = None,
    tell: Callable[[str], object] = warnings.warn,
) -> ModelSpec:
    """Read a checkpoint of one of FAMILIES or SOURCES, and write it as `hl.save` does: `hl.load(out)` opens it.

    One tensor at a time is in memory. A tokenizer.json and what stands beside it go along. check: looks at the folder,
    which `hl.load` opens, before it is put in place, and may raise. tell: is called with what of the config, or of the
    tokenizer, fits and may surprise; a warning, if nothing else.

    ExportError: a family or a field of the config that is not known, or that would change the mathematics; a
    tokenizer.json that is none. CheckpointError: weights that do not fit the config, or are not finite. `out` is then
    as it was.
    """
    folder, out = as_path(folder, ExportError), as_path(out, ExportError)
    theirs, config = read_config(folder)
    fields = Fields(config, str(folder / CONFIG))
    spec = _read_spec(theirs, fields)
    stack, surplus = plan(spec), _surplus_tokens(folder / TOKENIZER, spec)
    reader = ShardReader(folder)
    with changing(out, replaces=(*FORMS, *TEXT_FILES)) as staged:
        weights = theirs.found(stack, config, reader.entries)
        files = _write_weights(reader, weights, spec, staged)
        (staged / CONFIG).write_text(config_text(stack.spec))
        for path in [folder / name for name in TEXT_FILES if (folder / name).is_file()]:
            shutil.copyfile(path, staged / path.name)
        write_manifest(staged, [*files, CONFIG])
        if check is not None:
            check(staged)
    for note in [*(f"{fields.where}: {note}" for note in fields.notes), *surplus]:
        tell(note)
    return spec


def _surplus_tokens(path: Path, spec: ModelSpec) -> list[str]:
    """What to tell of a tokenizer.json that has more tokens than the model. ExportError: it is there, and is none."""
    if not path.is_file():
        return []
    try:
        size = FileCodec(path).vocab_size
    except DataError as error:
        raise ExportError(f"{error}. Mend it, or import the folder without it") from error
    more = f"{path}: {size} tokens, and the model has {spec.vocab_size}; `hybridlm generate` reads no text with it"
    return [more] if size > spec.vocab_size else []


def read_config(folder: Path) -> tuple[Source, Mapping[str, Any]]:
    """config.json of a folder, and the family that it names. ExportError: there is none, or it is not known."""
    path = folder / CONFIG
    if not path.is_file():
        raise ExportError(f"{folder}: {'no such folder' if not folder.exists() else f'no {CONFIG} in it'}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path}: a {type(config).__name__}; a config.json holds a mapping")
    if config.get("model_type") == "hybridlm":
        raise ExportError(f"{folder}: a model of hybridlm's own; hl.load opens it, nothing need be imported")
    every = [source(name) for name in (*FAMILIES, *SOURCES)]
    found = next((one for one in every if one.wrote(config)), None)
    if found is None:
        kind, known = config.get("model_type"), sorted(one.model_type or one.name for one in every)
        raise ExportError(
            f"{path}: model_type: {kind!r}; these can be read: {', '.join(known)}.{did_you_mean(str(kind), known)}"
        )
    return found, config


def _read_spec(theirs: Source, fields: Fields) -> ModelSpec:
    """A spec that can be built. ExportError: it cannot be read, or no model is like that."""
    try:
        spec = theirs.spec(fields)
        plan(spec)
    except (SpecError, PatternError) as error:
        raise ExportError(f"{fields.where}: there is no model like that: {error}") from error
    return spec


def _write_weights(reader: ShardReader, weights: Sequence[Weight], spec: ModelSpec, folder: Path) -> list[str]:
    """All weights, one at a time. Returns the names of the files."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(spec, device="meta").state_dict().items()}
    _require_names(weights, list(reader.entries), reader)
    _require_numbers(weights, reader)
    dtypes = _dtypes(reader, weights)
    entries = [Entry(name, dtypes[name], shapes[name]) for name in shapes]
    read = ((name, tensor.to(dtypes[name])) for name, tensor in _ours(reader, weights, shapes))
    return write_shards(folder, entries, read)


def _dtypes(reader: ShardReader, weights: Sequence[Weight]) -> dict[str, torch.dtype]:
    """{our name: its dtype}: theirs, or float32 of all where scaling some would round them otherwise."""
    theirs = {name: reader.entries[weight.theirs].dtype for weight in weights for name in weight.ours}
    rounded = [weight for weight in weights if any(frexp(scale)[0] != 0.5 for scale in weight.scales)]
    scaled = {name for weight in rounded for name in weight.ours}
    wide = any(theirs[name] != torch.float64 for name in scaled)
    return {name: torch.promote_types(dtype, torch.float32) if wide else dtype for name, dtype in theirs.items()}


def _require_names(weights: Sequence[Weight], found: Sequence[str], reader: ShardReader) -> None:
    """CheckpointError unless the checkpoint has what the config asks for, and nothing else but a tied output."""
    wanted = {weight.theirs for weight in weights}
    faults = [f"{name}: missing" for name in wanted - set(found)]
    surplus = [name for name in set(found) - wanted if not name.endswith(DERIVED)]
    surplus = [name for name in surplus if not _tied_copy(name, weights, reader)]
    left = wanted - set(found)
    faults += [f"{name}: not in a model of this config.{did_you_mean(name, left)}" for name in surplus]
    if faults:
        raise CheckpointError("the weights do not fit the config:\n  " + listed(sorted(faults)))


def _require_numbers(weights: Sequence[Weight], reader: ShardReader) -> None:
    """CheckpointError unless every tensor in use is of a dtype that weights have here: quantised ones have none."""
    found = {weight.theirs: reader.entries[weight.theirs].dtype for weight in weights}
    faults = [f"{name}: {dtype_name(dtype)}" for name, dtype in found.items() if dtype not in DTYPES]
    if faults:
        known = ", ".join(dtype_name(dtype) for dtype in DTYPES)
        raise CheckpointError(f"weights of another dtype than {known}:\n  " + listed(faults))


def _tied_copy(name: str, weights: Sequence[Weight], reader: ShardReader) -> bool:
    """Whether a surplus tensor is the output of a tied model, written out once more."""
    embedding = next((weight.theirs for weight in weights if weight.ours == ("embed.weight",)), None)
    tied = not any("lm_head.weight" in weight.ours for weight in weights)
    return tied and name == "lm_head.weight" and torch.equal(reader.read(name), reader.read(embedding))


def _ours(reader: ShardReader, weights: Sequence[Weight], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor), each once. What several of theirs say alike is compared."""
    origin: dict[str, Weight] = {}
    for weight in weights:
        if weight.index is None:
            found = _parts(reader, weight, shapes)
        elif weight.index == 0:
            found = {weight.ours[0]: _stacked(reader, weights, weight.ours[0], shapes)}
        else:
            continue  # read together with the first
        for name, part in found.items():
            if name not in origin:
                origin[name] = weight
                yield name, part
            elif not torch.equal(part, _parts(reader, origin[name], shapes)[name]):
                raise CheckpointError(f"{weight.theirs}: not the same as {origin[name].theirs}, which shares it")


def _parts(reader: ShardReader, weight: Weight, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """What one of theirs says of ours. CheckpointError: it does not fit, or it is a constant and has another value."""
    tensor = require_finite(weight.theirs, reader.read(weight.theirs), CheckpointError)
    found = weight.cut(tensor, shapes)
    if not weight.ours and not bool((tensor == weight.value).all()):
        raise CheckpointError(f"{weight.theirs}: only {weight.value:g} in every entry can be read")
    return found


def _stacked(reader: ShardReader, weights: Sequence[Weight], name: str, shapes: Mapping[str, Shape]) -> Tensor:
    """The one of ours that several of theirs are the entries of."""
    entries = sorted((weight for weight in weights if weight.ours == (name,)), key=lambda weight: weight.index)
    return torch.stack([_parts(reader, weight, shapes)[name] for weight in entries])
