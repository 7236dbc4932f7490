"""Documents -> memory-mapped token bins, built once, kept in a cache folder named after content and settings."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from hybridlm.errors import CheckpointError, DataError
from hybridlm.files import sha256, verify_manifest, write_manifest
from hybridlm.text import FileCodec
from hybridlm.train.console import Terminal
from hybridlm.train.corpus import Corpus, corpus_bytes, cut, draw, pieces, read_corpus, read_parts

FORMAT = 1  # of the bins; a new number makes every old cache entry unseen
SPLITS = ("train", "held_out")


class Tokenizer(Protocol):
    """UTF-8 bytes -> token ids below `vocab_size`; `digest` names it in the cache key."""

    vocab_size: int
    digest: str

    def encode(self, part: bytes) -> Iterator[np.ndarray]: ...


class ByteTokenizer:
    """Every byte is its own token: 256 of them, no file, no unknown text."""

    vocab_size = 256
    digest = "bytes"

    def encode(self, part: bytes) -> Iterator[np.ndarray]:
        yield np.frombuffer(part, dtype=np.uint8)


class FileTokenizer:
    """A tokenizer.json, piece by piece, so that a long document needs little memory; then its end, if it has one.

    Raises:
        DataError: the file is missing or no tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._codec = FileCodec(path)
        except DataError as error:
            raise DataError(f"data.tokenizer: {error}") from error
        self.vocab_size, self.digest = self._codec.vocab_size, sha256(path)

    def encode(self, part: bytes) -> Iterator[np.ndarray]:
        for piece in pieces(part):
            yield np.asarray(self._codec.encode(piece), dtype=np.uint32)
        if self._codec.end is not None:
            yield np.asarray([self._codec.end], dtype=np.uint32)


def load_tokenizer(tokenizer: str) -> Tokenizer:
    """`"bytes"`, or the path of a tokenizer.json. DataError if it is neither."""
    return ByteTokenizer() if tokenizer == "bytes" else FileTokenizer(tokenizer)


@dataclass(frozen=True, kw_only=True)
class TokenBin:
    """One split on the disk: all its documents' tokens end to end, and where each document starts."""

    folder: Path
    split: str
    dtype: str
    tokens: int
    documents: int
    bytes: int

    def read(self) -> np.ndarray:
        """(tokens,) memory-mapped; opened by each process for itself."""
        return np.memmap(self.folder / f"{self.split}.bin", dtype=self.dtype, mode="r")

    def starts(self) -> np.ndarray:
        """(documents,) int64: offset of each document's first token; starts[0] = 0."""
        return np.fromfile(self.folder / f"{self.split}.starts", dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Both splits, and what was passed over on the way."""

    train: TokenBin
    held_out: TokenBin
    skipped: dict[str, int]

    def summary(self) -> str:
        """One line for the reader: how much text there is, and what was passed over."""
        passed = "; passed over " + ", ".join(f"{n} {why}" for why, n in self.skipped.items()) if self.skipped else ""
        return (
            f"{self.train.documents} documents, {self.train.tokens:,} tokens to train on; "
            f"{self.held_out.documents} documents, {self.held_out.tokens:,} tokens held out{passed}"
        )


def default_cache() -> Path:
    """$HYBRIDLM_CACHE, or hybridlm/tokens in the user's cache folder."""
    if "HYBRIDLM_CACHE" in os.environ:
        return Path(os.environ["HYBRIDLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hybridlm" / "tokens"


def token_bins(
    path: str | list[str] | None, tokenizer: Tokenizer, *, separator: str | None, fraction: float, cache: Path
) -> Bins:
    """The bins of a corpus, from the cache, or built now with a progress bar.

    Processes may race: each builds in a folder of its own and the first rename wins. A damaged entry is built anew.

    Raises:
        DataError: see read_corpus; or the cache cannot be written.
    """
    try:
        with _progress() as bar:
            reading = bar.add_task("reading text", total=corpus_bytes(path))
            corpus = read_corpus(path, lambda done: bar.advance(reading, done))
            folder = cache / _key(corpus, tokenizer, separator, fraction)
            if not _intact(folder):
                writing = bar.add_task("writing tokens", total=sum(d.bytes for d in corpus.documents))
                _build(folder, corpus, tokenizer, separator, fraction, lambda done: bar.advance(writing, done))
    except OSError as error:
        full = " The disk is full:" if error.errno == errno.ENOSPC else ""
        raise DataError(f"data.cache:{full} cannot write tokens to {cache} ({error}); set data.cache") from error
    return open_bins(folder)


def open_bins(folder: Path) -> Bins:
    """Bins that `token_bins` made."""
    meta = json.loads((folder / "meta.json").read_text())
    train, held_out = (TokenBin(folder=folder, **meta[split]) for split in SPLITS)
    return Bins(train=train, held_out=held_out, skipped=meta["skipped"])


def _progress() -> Progress:
    columns = [TextColumn("{task.description:<14}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    console = Terminal(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not sys.stderr.isatty())


def _key(corpus: Corpus, tokenizer: Tokenizer, separator: str | None, fraction: float) -> str:
    documents = [document.digest for document in corpus.documents]
    settings = [FORMAT, tokenizer.digest, separator, fraction, sorted(corpus.skipped.items()), documents]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]


def _intact(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        verify_manifest(folder)
    except CheckpointError as error:
        print(f"the token cache is damaged and is built anew: {error}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


class _Writer:
    """Appends documents to one split's bin, and remembers where they start."""

    def __init__(self, folder: Path, split: str, vocab_size: int) -> None:
        self.folder, self.split = folder, split
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self.starts: list[int] = []
        self.tokens = self.bytes = 0

    def add(self, part: bytes, tokenizer: Tokenizer) -> None:
        start = self.tokens
        with open(self.folder / f"{self.split}.bin", "ab") as file:
            for ids in tokenizer.encode(part):
                file.write(ids.astype(self.dtype).tobytes())
                self.tokens += len(ids)
        if self.tokens > start:
            self.starts.append(start)
            self.bytes += len(part)

    def finish(self) -> TokenBin:
        starts = np.asarray(self.starts, dtype=np.int64)
        (self.folder / f"{self.split}.starts").write_bytes(starts.tobytes())
        for name in (f"{self.split}.bin", f"{self.split}.starts"):
            with open(self.folder / name, "ab") as file:  # also makes the bin of a split without a token
                os.fsync(file.fileno())
        sizes = {"tokens": self.tokens, "documents": len(self.starts), "bytes": self.bytes}
        return TokenBin(folder=self.folder, split=self.split, dtype=self.dtype.name, **sizes)


def _build(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    separator: str | None,
    fraction: float,
    advance: Callable[[int], None],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        writers = [_Writer(work, split, tokenizer.vocab_size) for split in SPLITS]
        for train, held_out in _split(corpus, separator, fraction, advance):
            for writer, part in zip(writers, (train, held_out), strict=True):
                if part:
                    writer.add(part, tokenizer)
        meta = {split: _entry(writer.finish()) for split, writer in zip(SPLITS, writers, strict=True)}
        (work / "meta.json").write_text(json.dumps({**meta, "skipped": corpus.skipped}, indent=2))
        write_manifest(work, [file.name for file in work.iterdir()])
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _entry(token_bin: TokenBin) -> dict:
    return {key: value for key, value in asdict(token_bin).items() if key != "folder"}


def _split(
    corpus: Corpus, separator: str | None, fraction: float, advance: Callable[[int], None]
) -> Iterator[tuple[bytes, bytes]]:
    """(training text, held-out text) of each document; one of them is empty unless all documents are one text."""
    draws = {draw(part) for document in corpus.documents for part in read_parts(document, separator)}
    alone = len(draws) < 2
    line = min(max(fraction, sorted(draws)[1]), max(draws)) if not alone else 0.0  # both splits hold something
    for document in corpus.documents:
        for part in read_parts(document, separator):
            if alone:
                yield cut(part, fraction)
            else:
                yield (b"", part) if draw(part) < line else (part, b"")
        advance(document.bytes)


def _publish(work: Path, folder: Path) -> None:
    """Rename the finished folder into place; if another process was first, its folder is as good."""
    try:
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():
            raise
