"""Text to token ids and back: bytes, or a tokenizer.json. Decoding goes token by token and never cuts a character."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Protocol

from hybridlm.errors import DataError

TOKENIZER = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"


class Decoder(Protocol):
    """What has been decoded so far, one token at a time."""

    def feed(self, token: int) -> str:
        """The text that this token completes: "" inside a character of several tokens, or for an id without text."""


class Codec(Protocol):
    """Text -> ids below `vocab_size`, and a fresh decoder for the way back."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decoder(self) -> Decoder: ...


class ByteCodec:
    """Every UTF-8 byte is its own token. Command-line arguments that are not UTF-8 keep their bytes."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape"))

    def decoder(self) -> Decoder:
        return _ByteDecoder()


class _ByteDecoder:
    """Holds the bytes of a character until it is whole; a byte that can begin or continue none is U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""


class FileCodec:
    """A tokenizer.json of the tokenizers library. DataError: the file is missing or no tokenizer.

    end: the id of <|endoftext|>, which ends a document; None where the vocabulary has no such token.
    """

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; `hybridlm tokenize` makes a {TOKENIZER}")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise DataError(f"{path}: no {TOKENIZER} of the tokenizers library: {error}") from error
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.end = self._tokenizer.token_to_id(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """DataError: a command-line argument that is not UTF-8, which only bytes can hold."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the Rust side says of a str that it cannot turn into UTF-8
            raise DataError(f"{text[:40]!r}: not UTF-8 text; a {TOKENIZER} reads nothing else") from None

    def decoder(self) -> Decoder:
        return _FileDecoder(self._tokenizer, self.vocab_size)


class _FileDecoder:
    """Decodes the tokens since the last whole character, and gives out what they add to it."""

    LONGEST = 4  # bytes of a UTF-8 character: so many tokens may be held back, then a broken one is shown as U+FFFD

    def __init__(self, tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._shown: list[int] = []  # what the next tokens are decoded after: some decoders look at their left
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        if token >= self._vocab_size:
            return ""
        self._held.append(token)
        before = self._tokenizer.decode(self._shown)
        text = self._tokenizer.decode(self._shown + self._held)
        if text.endswith("\ufffd") and len(self._held) < self.LONGEST:
            return ""
        self._shown, self._held = self._held, []
        return text[len(before) :]


def codec_of(folder: str | Path) -> Codec:
    """The codec of a saved model or a run: its tokenizer.json, or bytes if it has none.

    folder: a run, its model/, or any folder that `hl.save` wrote.
    """
    file = tokenizer_file(folder)
    return ByteCodec() if file is None else FileCodec(file)


def tokenizer_file(folder: str | Path) -> Path | None:
    """The tokenizer.json of a saved model or a run, if it has one."""
    found = [place / TOKENIZER for place in places(folder) if (place / TOKENIZER).is_file()]
    return found[0] if found else None


def places(folder: str | Path) -> list[Path]:
    """Where the files of a saved model or a run may be: a run has its model in model/, and the rest beside that."""
    folder = Path(folder)
    return [folder, folder / "model"] + ([folder.parent] if folder.name == "model" else [])
