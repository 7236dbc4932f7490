"""Export: a model as a folder that others open, proved to be the model before it is put in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hybridlm.checks import whole
from hybridlm.compose.build import require_weights
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import Stack, plan
from hybridlm.errors import ExportError
from hybridlm.export.choice import choose
from hybridlm.export.family import Family, common
from hybridlm.export.proof import Proof, prove, require_transformers
from hybridlm.files import as_path, changing
from hybridlm.shards import FORMS, MAX_BYTES, Entry, write_shards

CONFIG = "config.json"
MAX_LENGTH = 4096


@dataclass(frozen=True)
class Lowered:
    """What was written: the target, and the proof that it is the model; None, where it is the same bit by bit."""

    target: str
    proof: Proof | None


Beside = Callable[[Path, Lowered], None]
"""Writes further files into a folder, such as a tokenizer and a README, before all of it is put in place."""


def lower(
    model: HybridLM,
    out: str | Path,
    to: str = "auto",
    *,
    max_length: int = MAX_LENGTH,
    max_shard_bytes: int = MAX_BYTES,
    replaces: Iterable[str] = (),
    beside: Beside | None = None,
) -> Lowered:
    """Write a model into the folder `out` as one of FAMILIES, or as the first of them that fits.

    max_length: tokens that readers may be asked to read, for their config. max_shard_bytes: of tensors in one file.
    replaces: of files in `out` that go in the same step, as of `changing`. beside: what else goes into the folder.

    ExportError: what does not fit, and the nearest family; or the proof failed. `out` is then as it was.
    """
    require_weights(model, ExportError)
    whole("max_shard_bytes", max_shard_bytes, high=1 << 62)
    stack = plan(model.spec)
    target = choose(stack, to)
    require_transformers()

    def write(staged: Path) -> Proof:
        write_config(model, stack, target, staged, max_length)
        write_weights(model, stack, target, staged, max_shard_bytes)
        return prove(model, staged)

    return put_in_place(out, target.name, write, replaces=(*FORMS, *replaces), beside=beside)


def put_in_place(
    out: str | Path,
    target: str,
    write: Callable[[Path], Proof],
    *,
    replaces: Iterable[str],
    beside: Beside | None,
    reader: str = "transformers",
) -> Lowered:
    """Write into a folder of its own, which becomes `out` if the proof holds; else `out` stays as it was.

    write: writes into the folder that it is given, and proves what is in it. reader: what read it back for that.
    replaces, beside: as of `lower`.
    """
    with changing(as_path(out, ExportError), replaces=replaces) as staged:
        proof = write(staged)
        proof.require(target, reader)
        lowered = Lowered(target, proof)
        if beside is not None:
            beside(staged, lowered)
    return lowered


def write_config(model: HybridLM, stack: Stack, target: Family, folder: Path, max_length: int) -> None:
    """config.json, as its readers have it."""
    dtype = dtype_name(model.embed.weight.dtype)
    config = {**common(target, stack, dtype), **target.config(stack, max_length)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_weights(model: HybridLM, stack: Stack, target: Family, folder: Path, max_shard_bytes: int) -> None:
    """Every tensor of theirs, in the dtypes that the model has."""
    held = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    dtype = model.embed.weight.dtype
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    weights = target.weights(stack)
    entries = [Entry(w.theirs, held[w.ours[0]].dtype if w.ours else dtype, w.joined_shape(shapes)) for w in weights]
    joined = ((w.theirs, w.join(held.__getitem__, dtype)) for w in weights)
    write_shards(folder, entries, joined, max_bytes=max_shard_bytes)
