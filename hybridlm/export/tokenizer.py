"""The files by which others turn text into the ids of a model and back: tokenizer.json and what stands beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlm.compose import strict_yaml
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError, ExportError
from hybridlm.registry import tasks
from hybridlm.text import END_OF_TEXT, TOKENIZER, FileCodec, places, tokenizer_file

CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
CARRIED = (CONFIG, GENERATION, "special_tokens_map.json", "chat_template.jinja")
"""What a tokenizer.json that came from elsewhere may have beside it."""
TEXT_FILES = (TOKENIZER, *CARRIED)
BYTES = 256


@dataclass(frozen=True)
class Text:
    """How ids are text. path: of a tokenizer.json; None: every byte is a token."""

    path: Path | None = None


def text_of(source: str | Path | None, spec: ModelSpec, tokenizer: str | Path | None = None) -> Text | None:
    """How the ids of a model are text, or None where they are none, or where nobody says.

    source: the run, or the folder that `hl.save` wrote; None for a model in memory. tokenizer: "bytes" or a
    tokenizer.json, where the source does not say; without it a model of 256 tokens reads bytes, as `generate` has it.

    ExportError: a tokenizer that has more tokens than the model, or that is none.
    """
    if not spec.is_language_model:
        if tokenizer is not None:
            raise ExportError(f"tokenizer: {tokenizer}: this model reads no text (embed: tokens, head: lm)")
        return None
    text = _asked(tokenizer) if tokenizer is not None else _found(source, spec)
    if text is not None:
        _check_fits(text, spec)
    return text


def _asked(tokenizer: str | Path) -> Text:
    return Text() if tokenizer == "bytes" else Text(Path(tokenizer))


def _found(source: str | Path | None, spec: ModelSpec) -> Text | None:
    """What a source says: its tokenizer.json, or that it was trained on bytes."""
    if source is None:
        return Text() if spec.vocab_size == BYTES else None
    file = tokenizer_file(source)
    if file is not None:
        return Text(file)
    settings = [place / "config.yaml" for place in places(source) if (place / "config.yaml").is_file()]
    reads_bytes = _trained_on_text(settings[0]) if settings else spec.vocab_size == BYTES
    return Text() if reads_bytes else None


def _trained_on_text(settings: Path) -> bool:
    """Whether a run without a tokenizer.json read bytes of text; the ids of most tasks are symbols of their own."""
    task = strict_yaml.read(settings).get("task", "text")
    return task == "text" or (
        task in tasks and "codec" in {field.name for field in dataclasses.fields(tasks.get(task))}
    )


def _check_fits(text: Text, spec: ModelSpec) -> None:
    if text.path is None:
        size, name = BYTES, "bytes"
    else:
        try:
            size, name = FileCodec(text.path).vocab_size, str(text.path)
        except DataError as error:
            raise ExportError(str(error)) from error
    if size > spec.vocab_size:
        raise ExportError(f"tokenizer: {name} has {size} tokens and the model {spec.vocab_size}; it is another model's")


def write_tokenizer(folder: str | Path, text: Text | None, *, max_length: int | None = None) -> list[str]:
    """Write what a reader such as transformers' AutoTokenizer needs, and generation_config.json; their names.

    folder: for a model that is being written. text: see `text_of`; without any, only generation_config.json, which says
    that no id begins or ends a text. max_length: tokens that a reader may be asked to read, for tokenizer_config.json.

    The ids are those that the model was trained on: a tokenizer.json is copied as it is, with what stood beside it; of
    bytes it is one whose 256 tokens are the bytes in their order.
    """
    folder = Path(folder)
    written = {GENERATION: _text(_generation(text))}
    if text is not None:
        written[CONFIG] = _text(_config(text, max_length))
        written[TOKENIZER] = _byte_tokenizer() if text.path is None else text.path.read_text(encoding="utf-8")
    for name, content in written.items():
        (folder / name).write_text(content, encoding="utf-8")
    copied = [text.path.parent / name for name in CARRIED] if text is not None and text.path is not None else []
    for path in [path for path in copied if path.is_file()]:
        shutil.copyfile(path, folder / path.name)
        written[path.name] = ""
    return sorted(written)


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=2) + "\n"


def _config(text: Text, max_length: int | None) -> dict[str, Any]:
    """tokenizer_config.json: nothing is tidied up in decoding. <|endoftext|>, where there is one, also pads.

    Bytes have no token to pad with: one with a name would be found in texts that hold that name.
    """
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if max_length is not None:
        about["model_max_length"] = max_length
    if _end(text) is not None:
        about |= {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    return about


def _generation(text: Text | None) -> dict[str, Any]:
    """generation_config.json. null where no id has that meaning; left out, a family's own defaults would hold."""
    end = None if text is None else _end(text)
    return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}


def _end(text: Text) -> int | None:
    return None if text.path is None else FileCodec(text.path).end


def _byte_tokenizer() -> str:
    """A tokenizer.json whose token i is the byte i: no merges, no added token, nothing changed before or after."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str(pretty=True) + "\n"


def byte_letters() -> list[str]:
    """The letter that the tokenizers library writes for each byte.

    A byte that Latin-1 prints is its own letter; the others (controls, the space, the soft hyphen) are, in their order,
    the letters from U+0100 on.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(BYTES)]
