"""Text on the disk -> documents, and which of them are held out. A document is a file, or a part of one."""

from __future__ import annotations

import codecs
import glob
import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hybridlm.errors import DataError

STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Document:
    """A readable file of UTF-8 text. `digest` is the sha256 of its content: where it lies does not matter."""

    path: Path
    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents ordered by digest, that is in a shuffled order that is the same on every machine."""

    documents: tuple[Document, ...]
    skipped: dict[str, int]  # why -> how many files of the folders were passed over


def read_corpus(path: str | list[str] | None, advance: Callable[[int], None] = lambda done: None) -> Corpus:
    """Find the documents that `path` names: files, folders, globs, or (None) Python's standard library.

    A file that is named must be text; inside a folder or a glob, other files are passed over and counted.
    `advance(bytes)` is told how far reading has come.

    Raises:
        DataError: a path is missing, a named file is empty or binary, or nothing holds text.
    """
    named, found = _expand(path)
    documents: list[Document] = []
    skipped: dict[str, int] = {}
    for file in [*named, *found]:
        digest, fault = _examine(file)
        advance(file.stat().st_size)
        if not fault:
            documents.append(Document(path=file, bytes=file.stat().st_size, digest=digest))
        elif file in named:
            raise DataError(f"data.path: {file} is {fault}; give a file of UTF-8 text")
        else:
            skipped[fault] = skipped.get(fault, 0) + 1
    if not documents:
        passed = ", ".join(f"{count} {why}" for why, count in skipped.items()) or "no files at all"
        raise DataError(f"data.path: no UTF-8 text in {_describe(path)} ({passed})")
    return Corpus(documents=tuple(sorted(documents, key=lambda d: (d.digest, str(d.path)))), skipped=skipped)


def corpus_bytes(path: str | list[str] | None) -> int:
    """How many bytes `read_corpus` will read: the length of its progress bar."""
    return sum(file.stat().st_size for files in _expand(path) for file in files)


def _describe(path: str | list[str] | None) -> str:
    return "the standard library" if path is None else repr(path)


def _expand(path: str | list[str] | None) -> tuple[list[Path], list[Path]]:
    """(files named one by one, files found in folders and by globs); each file once."""
    if path is None:
        return [], standard_library()
    entries = [path] if isinstance(path, str) else path
    if not entries:
        raise DataError("data.path: an empty list; name files, folders or globs, or leave it out")
    named: dict[Path, None] = {}
    found: dict[Path, None] = {}
    for entry in entries:
        place = Path(entry).expanduser()
        if place.is_file():
            named[place.resolve()] = None
        elif place.is_dir():
            found.update(dict.fromkeys(_text_candidates(place)))
        else:
            found.update(dict.fromkeys(_globbed(entry)))
    return list(named), [file for file in found if file not in named]


def _text_candidates(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            yield file.resolve()


def _globbed(entry: str) -> list[Path]:
    matches = [Path(match).resolve() for match in sorted(glob.glob(str(Path(entry).expanduser()), recursive=True))]
    files = [match for match in matches if match.is_file()]
    if not files:
        what = "no file matches" if glob.has_magic(entry) else "no such file or folder:"
        raise DataError(f"data.path: {what} {entry!r} (looked from {Path.cwd()})")
    return files


def standard_library() -> list[Path]:
    """The source files of the running Python, without its tests and without installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(root.rglob("*.py")) if not STDLIB_EXCLUDED & set(f.relative_to(root).parts)]
    if not files:
        raise DataError(f"this Python carries no source of its standard library in {root}; set data.path to text files")
    return files


def _examine(file: Path) -> tuple[str, str]:
    """(sha256 of the content, fault or ""). One pass, block by block: a corpus may be larger than memory."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(file, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                if b"\0" in block:
                    return "", "binary (it holds a NUL byte)"
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "", "not UTF-8 text"
    except OSError as error:
        return "", f"unreadable ({error.strerror})"
    return digest.hexdigest(), "" if file.stat().st_size else "empty"


def read_parts(document: Document, separator: str | None) -> list[bytes]:
    """The document's text, cut at every `separator`; parts of white space alone are left out."""
    content = document.path.read_bytes()
    if separator is None:
        return [content]
    return [part for part in content.split(separator.encode()) if part.strip()]


def draw(part: bytes) -> float:
    """A document's place in [0, 1), by its content alone: adding other documents never moves it across the split."""
    return int.from_bytes(hashlib.sha256(b"held out:" + part).digest()[:7], "big") / 2**56


def cut(part: bytes, fraction: float) -> tuple[bytes, bytes]:
    """A lone document's (training text, held-out end), cut at a line where there is one near."""
    middle = max(1, min(len(part) - 1, round(len(part) * (1 - fraction))))
    line = part.rfind(b"\n", middle // 2, middle) + 1 or middle
    while line < len(part) and part[line] & 0xC0 == 0x80:  # never inside a UTF-8 character
        line += 1
    return part[:line], part[line:]


def pieces(part: bytes, size: int = _BLOCK) -> Iterator[str]:
    """A document as strings of about `size` bytes that end where a line ends: bounded memory for a tokenizer."""
    edges = [0]
    while edges[-1] < len(part):
        line = part.find(b"\n", edges[-1] + size) + 1
        edges.append(line or len(part))
    return (part[start:stop].decode() for start, stop in pairwise(edges))
