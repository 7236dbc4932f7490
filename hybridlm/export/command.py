"""`hybridlm export` and `hybridlm import`: a model for others to run, and theirs as a model here."""

from __future__ import annotations

import glob
import json as writer
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridlm import __version__
from hybridlm.checks import whole
from hybridlm.compose.build import load
from hybridlm.compose.cost import model_cost
from hybridlm.compose.memory import readable_bytes
from hybridlm.errors import ExportError, UnsupportedError
from hybridlm.export.card import Facts, write_card
from hybridlm.export.choice import passed_over
from hybridlm.export.family import FAMILIES
from hybridlm.export.lift import lift
from hybridlm.export.lower import MAX_LENGTH, Lowered
from hybridlm.export.original import Original, read_original
from hybridlm.export.place import read_record, require_empty, require_place, write_record
from hybridlm.export.proof import EXACT, Proof, require_transformers, said_of
from hybridlm.export.proof import prove as compare
from hybridlm.export.targets import Order, Target, chosen, targets
from hybridlm.export.targets import target as named
from hybridlm.export.tokenizer import write_tokenizer
from hybridlm.shards import MAX_BYTES
from hybridlm.text import TOKENIZER

Dtype = Literal["float32", "bfloat16", "float16"]


def export_model(
    run: str,
    out: str,
    to: str = "auto",
    max_length: int | None = None,
    max_shard_bytes: int | None = None,
    dtype: Dtype | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a trained model as a folder that others open, proved to be the same model.

    What was written is loaded with transformers and compared: logits of whole rows, token by token with the cache, and
    with padding. If a logit is off by more than rounding, or the form cannot hold the model, nothing is left behind.

    Args:
        run: a run folder, or a folder that hl.save wrote.
        out: the folder to write: a new one, or an empty one. Nothing of yours is ever overwritten.
        to: TARGETS.
        max_length: tokens that readers may be asked to read, for their config; default 4096, or what it was trained on.
        max_shard_bytes: bytes of tensors in one file of weights, such as 2000000000; default 5 GB, 5000000000.
        dtype: of the weights; default as they are. The proof is of the rounded weights.
        tokenizer: "bytes" or a tokenizer.json, where the run does not say.
        overwrite: replace an earlier export that nobody has changed.
        json: print JSON instead of a table.
    """
    _require_words(to, max_length, max_shard_bytes)
    place = Path(out)
    replaces = [glob.escape(name) for name in require_place(place, Path(run), overwrite)]
    original = read_original(run, dtype and getattr(torch, dtype), tokenizer)
    target = chosen(original, to)
    length = max_length or max(MAX_LENGTH, original.context or 0)
    if to == "auto" and target.name not in FAMILIES:
        _say(f"no family is exact for this model:\n{passed_over(original.stack)}")
    _say(f"{out}: writing {target.name}, {target.what}, and comparing it with {run}")
    beside = partial(_write_beside, original, target, out, length)
    target.write(Order(original, place, length, max_shard_bytes or MAX_BYTES, replaces, beside))
    about = {"folder": out, **read_record(place), "served_by": list(target.served_by)}
    print(writer.dumps(about, indent=2)) if json else _print(_exported(about))


export_model.__doc__ = export_model.__doc__.replace(
    "TARGETS",
    "auto, which is the most widely served family that is exact, or else remote-code; or one of "
    + ", ".join(targets()),
)


def _require_words(to: str, max_length: int | None, max_shard_bytes: int | None) -> None:
    """SpecError, ExportError for what can be told before anything is read."""
    form = None if to == "auto" else named(to)
    if max_length is not None:
        whole("--max-length", max_length, high=1 << 40)
        if form is not None and not form.text:
            raise ExportError(
                f"--max-length: {to}: no file of it says how much a reader may be asked for; leave it out"
            )
    if max_shard_bytes is not None:
        whole("--max-shard-bytes", max_shard_bytes, high=1 << 62)
        if form is not None and not form.shards:
            raise ExportError(f"--max-shard-bytes: {to}: a program holds its weights, and is never cut; leave it out")


def _write_beside(original: Original, target: Target, out: str, length: int, staged: Path, lowered: Lowered) -> None:
    """Tokenizer and card, where the form has none of its own, and the record of it all."""
    versions = _versions()
    if target.text and original.stack.spec.is_language_model:
        write_tokenizer(staged, original.text, max_length=length)
    if target.text:
        write_card(original, Facts(out, target, lowered.proof, versions, length), staged)
    write_record(staged, {"target": target.name, "proof": _proof(lowered.proof), "versions": versions})


def _proof(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    wide = {"float64": {"errors": dict(proof.exact), "limit": EXACT}} if proof.exact else {}
    return {"errors": dict(proof.errors), "limit": proof.limit, "tokens": proof.tokens, **wide}


def _versions() -> dict[str, str]:
    found = {"hybridlm": __version__, "torch": torch.__version__}
    with suppress(UnsupportedError):
        found["transformers"] = require_transformers().__version__
    return found


def _exported(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of an export."""
    return [
        ("written", about["folder"]),
        ("target", about["target"]),
        *(_compared(about["proof"]) if about["proof"] else [("compared", "every tensor, bit by bit: the same")]),
        ("served by", ", ".join(about["served_by"])),
        *((name, readable_bytes(entry["bytes"])) for name, entry in about["files"].items()),
    ]


# --------------------------------------------------------------------------------------------------------------- import
def import_model(folder: str, out: str, prove: bool = False, json: bool = False) -> None:
    """Read a checkpoint of a known family into a folder that hl.load and hybridlm generate open.

    A field of its config.json that is unknown, or that would change the mathematics, is refused by its name. One tensor
    at a time is in memory.

    Args:
        folder: a folder with config.json and safetensors, in one file or in shards.
        out: the folder to write: a new one, or an empty one.
        prove: compare the logits with those of the model that transformers makes of the folder.
        json: print JSON instead of a table.
    """
    place, source = Path(out), Path(folder)
    require_empty(place, source)
    _require_checkpoint(source)
    _say(f"{out}: reading {folder}{', and comparing it with what transformers makes of it' if prove else ''}")
    found: dict[str, Any] = {}
    notes: list[str] = []

    def check(staged: Path) -> None:
        found["proof"] = compare(load(staged), source)
        found["proof"].require(folder)

    spec = lift(source, place, check=check if prove else None, tell=notes.append)
    about = {
        "folder": out,
        "pattern": spec.pattern,
        "d_model": spec.d_model,
        "vocab_size": spec.vocab_size,
        "parameters": model_cost(spec).parameters,
        "tokenizer": (place / TOKENIZER).is_file(),
        "proof": _proof(found["proof"]) if prove else None,
        "notes": notes,
    }
    print(writer.dumps(about, indent=2)) if json else _print(_imported(about))


def _require_checkpoint(folder: Path) -> None:
    """ExportError where nothing is, with what to do."""
    if not folder.exists():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder))
        more = f"; from the Hub, first: hf download {folder} --local-dir {folder.name}" if hub else ""
        raise ExportError(f"{folder}: no such folder{more}")
    if folder.is_file():
        raise ExportError(f"{folder}: a file; give its folder, with config.json and safetensors in it")


def _imported(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of an import."""
    return [
        ("written", about["folder"]),
        ("pattern", about["pattern"]),
        ("width", f"{about['d_model']:,}"),
        ("parameters", f"{about['parameters']:,}"),
        ("vocabulary", f"{about['vocab_size']:,}, {'with' if about['tokenizer'] else 'without'} a tokenizer"),
        *(_compared(about["proof"]) if about["proof"] else [("compared", "no; --prove does, with transformers")]),
        *(("note", note) for note in about["notes"]),
    ]


# ------------------------------------------------------------------------------------------------------------- printing
def _compared(proof: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The worst errors."""
    said = [("worst error", f"{said_of(proof['errors'])}; allowed {proof['limit']:.0e} of the logits' RMS")]
    if wide := proof.get("float64"):
        said.append(("in float64", f"{said_of(wide['errors'])}; allowed {wide['limit']:.0e}: the rest is rounding"))
    return said


def _print(rows: Sequence[tuple[str, str]]) -> None:
    """Rows of a name and what is said of it, on stdout; into a pipe, unwrapped."""
    table = Table.grid("name", "said", padding=(0, 2))
    for name, said in rows:
        table.add_row(Text(name, "bold"), Text(said))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else max(len(said) for _, said in rows) + 40)
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def _say(line: str) -> None:
    """What is being done, on stderr."""
    print(line, file=sys.stderr, flush=True)
