"""The own format as a folder for the Hugging Face Hub: what `hl.load` reads, and what a visitor expects to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hybridlm import __version__
from hybridlm.checks import whole
from hybridlm.compose.build import CONFIG, Saved, config_text, empty_model, read_saved, require_weights
from hybridlm.compose.cost import model_cost
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import ExportError
from hybridlm.export.tokenizer import TEXT_FILES, Text, text_of, write_tokenizer
from hybridlm.export.weights import require_finite
from hybridlm.export.words import CARD, shown_pattern, shown_tokenizer
from hybridlm.files import as_path, changing, write_manifest
from hybridlm.shards import FORMS, MAX_BYTES, Entry, entries_of, write_shards
from hybridlm.text import TOKENIZER


@dataclass(frozen=True)
class Origin:
    """A model in memory or in a folder: its resolved spec, and its tensors, which come one at a time."""

    spec: ModelSpec
    entries: list[Entry]
    model: HybridLM | None = None
    saved: Saved | None = None

    @property
    def folder(self) -> Path | None:
        """Where it is saved, if it is."""
        return None if self.saved is None else self.saved.folder

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all. ExportError: a weight is not finite."""
        held = self.model.state_dict().items() if self.saved is None else self.saved.weights
        return ((name, require_finite(name, tensor, ExportError)) for name, tensor in held)


def write_own(
    source: HybridLM | str | Path,
    out: str | Path,
    *,
    max_shard_bytes: int = MAX_BYTES,
    tokenizer: str | Path | None = None,
    replaces: Iterable[str] = (),
    beside: Callable[[Path], None] | None = None,
) -> ModelSpec:
    """Write a model as `hl.load` reads it, with tokenizer, generation settings and a model card; its spec.

    source: a model, a run folder, or a folder that `hl.save` wrote, which is read tensor by tensor. max_shard_bytes: of
    tensors in one file. tokenizer: "bytes" or a tokenizer.json, where the source does not say. replaces: names of files
    in `out` that go when the new ones come, besides weights and tokenizers. beside: writes further files into the
    folder that it is given, before all of it is put in place.

    What was written is read again and compared with the source, bit by bit, before it is put in place.

    ExportError: the tokenizer does not fit, or a weight is not finite. CheckpointError: the source is damaged. OSError:
    a full disk, say. `out` is then as it was.
    """
    whole("max_shard_bytes", max_shard_bytes, high=1 << 62)
    origin = origin_of(source)
    text = text_of(origin.folder, origin.spec, tokenizer)
    with changing(as_path(out, ExportError), replaces=(*FORMS, *TEXT_FILES, *replaces)) as staged:
        files = write_shards(staged, origin.entries, origin.tensors(), max_bytes=max_shard_bytes)
        (staged / CONFIG).write_text(config_text(origin.spec), encoding="utf-8")
        names = write_tokenizer(staged, text)
        (staged / CARD).write_text(card(origin, text), encoding="utf-8")
        write_manifest(staged, [*files, CONFIG, *(name for name in names if name == TOKENIZER)])
        require_same(origin, staged)
        if beside is not None:
            beside(staged)
    return origin.spec


def origin_of(source: HybridLM | str | Path) -> Origin:
    """What is to be exported. CheckpointError: nothing there, damaged, or weights that do not fit the spec."""
    if isinstance(source, HybridLM):
        require_weights(source)
        return Origin(source.spec, entries_of(source.state_dict().items()), model=source)
    saved = read_saved(as_path(source, ExportError))
    return Origin(empty_model(saved).spec, list(saved.weights.entries.values()), saved=saved)


def require_same(origin: Origin, folder: Path) -> None:
    """ExportError unless a folder holds the spec and the tensors of a source, bit by bit. One tensor is in memory."""
    written = read_saved(folder)
    faults = [] if empty_model(written).spec == origin.spec else ["the spec"]
    faults += [name for name, tensor in origin.tensors() if not _same_bits(tensor, written.weights.read(name))]
    if faults:
        raise ExportError(f"what was written is not what was read: {', '.join(faults)}; nothing was put in place")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    left, right = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(left, right)


def card(origin: Origin, text: Text | None) -> str:
    """README.md: what the model is and how it is loaded, with gaps for what only its maker knows."""
    spec = origin.spec
    dtypes = Counter(dtype_name(entry.dtype) for entry in origin.entries)
    rows = {
        "parameters": f"{model_cost(spec).parameters:,} ({', '.join(name for name, _ in dtypes.most_common())})",
        "width": f"{spec.d_model:,}",
        "vocabulary": "none" if spec.vocab_size is None else f"{spec.vocab_size:,}",
        **({"tokenizer": shown_tokenizer(text)} if spec.reads_tokens else {}),
    }
    return CARD_TEXT.format(
        task="pipeline_tag: text-generation\n" if spec.is_language_model else "",
        version=__version__,
        pattern=shown_pattern(spec),
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        use="" if text is None else GENERATE,
    )


GENERATE = """
```sh
hybridlm generate FOLDER --prompt "Once upon a time"
```
"""
CARD_TEXT = """---
library_name: hybridlm
{task}tags:
- hybridlm
---

# Model

Composed with hybridlm {version}, from this pattern of layers:

```text
{pattern}
```

| | |
|---|---|
{rows}

What it was trained on, what it is good for, where it fails, and its license: to be written.

## Use

FOLDER is where this file lies.

```python
import hybridlm as hl

model = hl.load("FOLDER")
```
{use}
config.json holds the whole spec. manifest.json holds size and sha256 of weights, spec and tokenizer.json, and `hl.load`
compares them; the other files are yours to edit. When the folder was written, each tensor was read again and was the
one that it was made of, bit by bit.
"""
