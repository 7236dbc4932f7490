"""`hybridlm export` and `hybridlm import`: a model for others to run, and theirs as a model here."""

from __future__ import annotations

import json as writer
import re
import sys
from collections.abc import Mapping, Sequence
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
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError, did_you_mean
from hybridlm.export.card import Facts, write_card
from hybridlm.export.family import FAMILIES, family
from hybridlm.export.lift import lift
from hybridlm.export.lower import MAX_LENGTH, Lowered, choose, lower
from hybridlm.export.original import read_original
from hybridlm.export.place import read_record, require_empty, require_place, write_record
from hybridlm.export.proof import Proof, require_transformers
from hybridlm.export.proof import prove as compare
from hybridlm.text import TOKENIZER

Dtype = Literal["float32", "bfloat16", "float16"]


def export_model(
    run: str,
    out: str,
    to: str = "auto",
    max_length: int | None = None,
    dtype: Dtype | None = None,
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
        dtype: of the weights; default as they are. The proof is of the rounded weights.
        overwrite: replace an earlier export that nobody has changed.
        json: print JSON instead of a table.
    """
    _require_target(to)
    if max_length is not None:
        whole("--max-length", max_length, high=1 << 40)
    place = Path(out)
    replaces = require_place(place, Path(run), overwrite)
    original = read_original(run, dtype and getattr(torch, dtype))
    length = max_length or max(MAX_LENGTH, original.context or 0)
    target = choose(plan(original.model.spec), to)
    _say(f"{out}: writing {target.name}, {_size(original.model)}, and comparing it with what transformers reads")

    def beside(staged: Path, lowered: Lowered) -> None:
        facts = Facts(place.resolve().name, out, lowered, target.served_by, _versions(), length)
        write_card(original, facts, staged)
        write_record(staged, _record(lowered, facts))

    lower(original.model, place, target.name, max_length=length, replaces=replaces, beside=beside)
    about = {"folder": out, **read_record(place), "served_by": list(target.served_by)}
    print(writer.dumps(about, indent=2)) if json else _print(_exported(about))


export_model.__doc__ = export_model.__doc__.replace(
    "TARGETS", f"auto, which is the most widely served of these that is exact: {', '.join(FAMILIES)}"
)


def _require_target(to: str) -> None:
    known = ["auto", *FAMILIES]
    if to not in known:
        raise ExportError(f"--to: {to!r}; it must be one of {', '.join(known)}.{did_you_mean(to, known)}")


def _record(lowered: Lowered, facts: Facts) -> dict[str, Any]:
    """What export.json says besides its files."""
    return {
        "target": lowered.target,
        "architecture": family(lowered.target).architecture,
        "proof": _proof(lowered.proof),
        "versions": facts.versions,
    }


def _size(model: HybridLM) -> str:
    return readable_bytes(sum(tensor.nbytes for tensor in model.state_dict().values()))


def _proof(proof: Proof) -> dict[str, Any]:
    return {"errors": dict(proof.errors), "limit": proof.limit, "tokens": proof.tokens}


def _versions() -> dict[str, str]:
    transformers = require_transformers().__version__
    return {"hybridlm": __version__, "torch": torch.__version__, "transformers": transformers}


def _exported(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of an export."""
    return [
        ("written", about["folder"]),
        ("target", f"{about['target']} ({about['architecture']})"),
        *_compared(about["proof"]),
        ("served by", f"{', '.join(about['served_by'])}; of these transformers was run"),
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

    def check(staged: Path) -> None:
        found["proof"] = compare(load(staged), source)
        found["proof"].require(folder)

    spec = lift(source, place, check=check if prove else None)
    about = {
        "folder": out,
        "pattern": spec.pattern,
        "d_model": spec.d_model,
        "vocab_size": spec.vocab_size,
        "parameters": model_cost(spec).parameters,
        "tokenizer": (place / TOKENIZER).is_file(),
        "proof": _proof(found["proof"]) if prove else None,
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
    ]


# ------------------------------------------------------------------------------------------------------------- printing
def _compared(proof: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The worst errors."""
    worst = ", ".join(f"{name} {error:.1e}" for name, error in proof["errors"].items())
    return [("worst error", f"{worst}; allowed {proof['limit']:.0e} of the logits' RMS")]


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
