"""The README of an export: what the model is, how it is served, what was verified, and what was not run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlm.compose.cost import model_cost
from hybridlm.compose.part import Part
from hybridlm.compose.plan import LayerPlan
from hybridlm.export.halves import WITHOUT_EFFECT
from hybridlm.export.original import Original
from hybridlm.export.proof import Proof
from hybridlm.export.targets import Target
from hybridlm.export.tokenizer import Text

CARD = "README.md"
NOT_RUN = ("vLLM", "SGLang", "llama.cpp")
PADDED = 16  # some servers cut a vocabulary into pieces of so many rows
LENGTH = 2000  # characters of a pattern that a page has room for

PYTHON = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForCausalLM.from_pretrained({folder}{trust})
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))"""
"""For a folder with a tokenizer."""
IDS = """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({folder}{trust})
ids = torch.tensor([[1, 2, 3]])  # the folder has no tokenizer
print(model.generate(ids, max_new_tokens=50)[0])"""
COMMANDS = {
    "vLLM": "vllm serve {folder}",
    "SGLang": "python -m sglang.launch_server --model-path {folder}",
    "llama.cpp": "python convert_hf_to_gguf.py {folder} --outfile model.gguf\nllama-server -m model.gguf",
}


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
        _front(facts),
        f"# {Path(facts.folder).resolve().name}",
        _about(original, facts),
        _layers(original),
        _serving(facts, original.text is not None),
        _verified(original, facts),
        _back(facts),
    ]
    (staged / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _front(facts: Facts) -> str:
    tags = "".join(f"\n- {tag}" for tag in ("hybridlm", facts.target.name))
    return f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:{tags}\n---"


# ------------------------------------------------------------------------------------------------------------ the model
def _about(original: Original, facts: Facts) -> str:
    stack, spec = original.stack, original.stack.spec
    context = f"windows of {original.context:,} tokens" if original.context else "not recorded"
    rows = [
        ("layers", f"{len(stack.layers)}"),
        ("width", f"{spec.d_model:,}"),
        ("parameters", f"{model_cost(spec).parameters:,}"),
        ("vocabulary", _vocabulary(spec.vocab_size)),
        ("tokenizer", _tokenizer(original.text)),
        ("input and output matrix", "one, tied" if spec.tie_embeddings else "two"),
        ("norm", f"{spec.norm}, epsilon {spec.norm_eps:g}"),
        ("weights", str(original.model.embed.weight.dtype).removeprefix("torch.")),
        ("trained on", context),
        (
            "longest input",
            "any: its cache grows" if facts.target.code else f"{facts.max_length:,} tokens, says config.json",
        ),
    ]
    pattern = spec.pattern if len(spec.pattern) <= LENGTH else f"{spec.pattern[:LENGTH]}..."
    said = f"A language model, composed with hybridlm {facts.versions['hybridlm']} from this pattern of layers:"
    return f"{said}\n\n```text\n{pattern}\n```\n\n{_table(('', ''), rows)}"


def _vocabulary(size: int) -> str:
    left = size % PADDED
    note = f"; not a multiple of {PADDED}, to which some servers pad it ({size - left + PADDED:,})"
    return f"{size:,} token ids" + (note if left else "")


def _tokenizer(text: Text | None) -> str:
    if text is None:
        return "none came with it: ids in, ids out"
    return "bytes of UTF-8, a token each" if text.path is None else "tokenizer.json, as it was trained with"


def _layers(original: Original) -> str:
    kinds: dict[str, tuple[LayerPlan, int]] = {}
    for layer in original.stack.layers:
        kinds[layer.name] = layer, kinds.get(layer.name, (layer, 0))[1] + 1
    rows = [
        (f"`{name}`", f"{count}", _parts(layer.mixers), _parts(layer.mlps)) for name, (layer, count) in kinds.items()
    ]
    return f"## Layers\n\n{_table(('block', 'layers', 'mixer', 'MLP'), rows)}"


def _parts(parts: Iterable[Part]) -> str:
    return " beside ".join(f"{part.type} ({_settings(part.to_dict())})" for part in parts) or "none"


def _settings(config: dict[str, Any]) -> str:
    shown = {name: value for name, value in config.items() if name != "type" and name not in WITHOUT_EFFECT}
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in shown.items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------- what of it
def _serving(facts: Facts, has_tokenizer: bool) -> str:
    trust = ", trust_remote_code=True" if facts.target.code else ""
    code = (PYTHON if has_tokenizer else IDS).format(folder=json.dumps(facts.folder, ensure_ascii=False), trust=trust)
    found = [f"## Serve it\n\nWith transformers:\n\n```python\n{code}\n```"]
    for server in facts.target.served_by:
        name = server.partition(" (")[0]
        if name in COMMANDS:
            found.append(
                f"With {server}; not run here:\n\n```sh\n{COMMANDS[name].format(folder=shlex.quote(facts.folder))}\n```"
            )
    return "\n\n".join(found)


def _verified(original: Original, facts: Facts) -> str:
    proof = facts.proof
    rows = [(WHAT[name], f"{error:.1e}", f"{proof.limit:.0e}") for name, error in proof.errors.items()]
    dtype = str(original.model.embed.weight.dtype).removeprefix("torch.")
    rounded = "" if dtype == "float32" else f" of the {dtype} weights in this folder"
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    others = [name for name in NOT_RUN if any(server.startswith(name) for server in facts.target.served_by)]
    said = (
        f"Before it was put in place, this folder was loaded with transformers, and its logits{rounded} were compared "
        f"with those of the model it was made of, in float32, over random rows of {proof.tokens} tokens ({versions}). "
        "The worst error of a logit, over the RMS of all:"
    )
    table = _table(("what", "worst error", "allowed"), rows)
    return "\n\n".join(["## Verified", said, table, *([f"Not run: {', '.join(others)}."] if others else [])])


WHAT = {
    "prefill": "a whole row at once",
    "step": "a prompt, then token by token with the cache",
    "padded": "a batch with padding on the left",
}


def _back(facts: Facts) -> str:
    if facts.target.code:
        return "## Back into hybridlm\n\n`hl.load` and `hybridlm generate` open this folder as it is."
    return (
        f"## Back into hybridlm\n\n```sh\nhybridlm import {shlex.quote(facts.folder)} OUT\n```\n\n"
        "gives a folder that `hl.load` and `hybridlm generate` open: the same weights, to the bit."
    )
