"""The README of an export: what the model is, how it is served, what was verified, and what was not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlm.compose.cost import model_cost
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.part import Part
from hybridlm.compose.plan import LayerPlan
from hybridlm.export.family import FAMILIES
from hybridlm.export.halves import WITHOUT_EFFECT
from hybridlm.export.original import Original
from hybridlm.export.proof import EXACT, Proof
from hybridlm.export.targets import Target
from hybridlm.export.uses import COMMANDS, back_of, use_of
from hybridlm.export.words import CARD, shown_pattern, shown_tokenizer

PADDED = 16  # some servers cut a vocabulary into pieces of so many rows
READER, READERS = "transformers", {"torch-export": "pytorch", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Facts:
    """What a card says besides what the model says of itself.

    folder: what its commands name. proof: of what was written. versions: of what compared. max_length: tokens that
    readers may be asked to read.
    """

    folder: str
    target: Target
    proof: Proof
    versions: Mapping[str, str]
    max_length: int


def write_card(original: Original, facts: Facts, staged: Path) -> None:
    """Write README.md into a folder that has everything else."""
    sections = [
        _front(original, facts),
        f"# {Path(facts.folder).resolve().name}",
        _about(original, facts),
        _layers(original),
        use_of(facts.target, facts.folder, original),
        _verified(original, facts),
        back_of(facts.target, facts.folder),
    ]
    (staged / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _front(original: Original, facts: Facts) -> str:
    tags = "".join(f"\n- {tag}" for tag in ("hybridlm", facts.target.name))
    task = "\npipeline_tag: text-generation" if original.stack.spec.is_language_model else ""
    return f"---\nlibrary_name: {READERS.get(facts.target.name, READER)}{task}\ntags:{tags}\n---"


# ------------------------------------------------------------------------------------------------------------ the model
def _about(original: Original, facts: Facts) -> str:
    stack, spec = original.stack, original.stack.spec
    context = f"windows of {original.context:,} tokens" if original.context else "not recorded"
    longest = f"{facts.max_length:,} tokens, says config.json" if facts.target.name in FAMILIES else "any"
    rows = [
        ("layers", f"{len(stack.layers)}"),
        ("width", f"{spec.d_model:,}"),
        ("parameters", f"{model_cost(spec).parameters:,}"),
        *([("vocabulary", _vocabulary(spec.vocab_size))] if spec.vocab_size else []),
        *([("tokenizer", shown_tokenizer(original.text))] if spec.reads_tokens else [("reads", _said(spec.embed))]),
        *([] if spec.head == "lm" else [("writes", _said(spec.head))]),
        ("input and output matrix", "one, tied" if spec.tie_embeddings else "two"),
        ("norm", f"{spec.norm}, epsilon {spec.norm_eps:g}"),
        ("weights", _dtype(original)),
        ("trained on", context),
        ("longest input", longest),
    ]
    kind = "language model" if spec.is_language_model else "model"
    said = f"A {kind}, composed with hybridlm {facts.versions['hybridlm']} from this pattern of layers:"
    return f"{said}\n\n```text\n{shown_pattern(spec)}\n```\n\n{_table(('', ''), rows)}"


def _dtype(original: Original) -> str:
    return dtype_name(next(original.model.parameters()).dtype)


def _vocabulary(size: int) -> str:
    left = size % PADDED
    note = f"; not a multiple of {PADDED}, to which some servers pad it ({size - left + PADDED:,})"
    return f"{size:,} token ids" + (note if left else "")


def _layers(original: Original) -> str:
    kinds: dict[str, tuple[LayerPlan, int]] = {}
    for layer in original.stack.layers:
        kinds[layer.name] = layer, kinds.get(layer.name, (layer, 0))[1] + 1
    rows = [
        (f"`{name}`", f"{count}", _parts(layer.mixers), _parts(layer.mlps)) for name, (layer, count) in kinds.items()
    ]
    return f"## Layers\n\n{_table(('block', 'layers', 'mixer', 'MLP'), rows)}"


def _parts(parts: Iterable[Part]) -> str:
    return " beside ".join(_said(part.to_dict()) for part in parts) or "none"


def _said(about: Mapping[str, Any]) -> str:
    """A type, and its settings in brackets."""
    shown = {name: value for name, value in about.items() if name != "type" and name not in WITHOUT_EFFECT}
    return f"{about['type']} ({', '.join(f'{name} {json.dumps(value)}' for name, value in shown.items())})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------- what of it
def _verified(original: Original, facts: Facts) -> str:
    proof = facts.proof
    rows = [(WHAT[name], f"{error:.1e}", f"{proof.limit:.0e}") for name, error in proof.errors.items()]
    dtype = _dtype(original)
    rounded = "" if dtype == "float32" else f" of the {dtype} weights in this folder"
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    others = [name for name in facts.target.served_by if name in COMMANDS]
    reader = READERS.get(facts.target.name, READER)
    said = (
        f"Before it was put in place, this folder was read back by {reader}, and its answers{rounded} were compared "
        f"with those of the model it was made of, in float32, over random rows of {proof.tokens} tokens ({versions}). "
        "The worst error of a logit, over the RMS of all:"
    )
    found = ["## Verified", said, _table(("what", "worst error", "allowed"), rows), *_exact(proof)]
    return "\n\n".join([*found, *([f"Not run: {', '.join(others)}."] if others else [])])


def _exact(proof: Proof) -> list[str]:
    """What float64 said, where float32 rounds too much."""
    if not proof.exact:
        return []
    rows = [(WHAT[name], f"{error:.1e}", f"{EXACT:.0e}") for name, error in proof.exact.items()]
    return [ROUNDS, _table(("what", "in float64", "allowed"), rows)]


WHAT = {
    "prefill": "a whole row at once",
    "step": "a prompt, then token by token with the cache",
    "padded": "a batch with padding on the left",
}
ROUNDS = (
    "That is more than is allowed: this model makes more of what float32 rounds than others do. So both were compared "
    "in float64 as well, and there they are the same model:"
)
