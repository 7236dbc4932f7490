"""Reading the weights of a folder tensor by tensor: safetensors, whole or in shards, and the older pickles."""

from __future__ import annotations

import mmap
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hybridlm.errors import CheckpointError, did_you_mean
from hybridlm.files import as_path
from hybridlm.shards.header import read_header, read_json
from hybridlm.shards.layout import INDEX, WEIGHTS, entries_of

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"-\d+-of-0*([2-9]|[1-9]\d+)\.safetensors")


class ShardReader:
    """The tensors of a folder, or of one file, by name; one at a time in memory.

    path: a folder that holds model.safetensors, or model.safetensors.index.json and its shards, or one other
    .safetensors file, or pytorch_model.bin, whole or with an index (read without running any code in it); or one of
    these files itself.

    entries: {name: Entry} of all tensors, in the order in which they lie in the files. files: the paths that hold them,
    and the index.

    CheckpointError, before any tensor is read: nothing there, two forms at once, a shard that is missing, cut off or
    outside the folder, a name in the index that its shard does not hold, or the other way round, a name in two shards.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        first = _weights_file(self.path)
        shards = _indexed(first) if first.suffix == ".json" else {first: None}
        self.files = [*([first] if first.suffix == ".json" else []), *shards]
        self._sources = [_Pickle(shard) if shard.suffix == ".bin" else _Safetensors(shard) for shard in shards]
        _check_once(self._sources)
        for source, names in zip(self._sources, shards.values(), strict=True):
            if names is not None:
                _check_named(source.path, set(source.entries), set(names))
        self._source = {name: source for source in self._sources for name in source.entries}
        self.entries = {name: source.entries[name] for name, source in self._source.items()}

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU: pages of the file, that come when they are looked at and go with the tensor.

        Writing to it changes no file; what is to outlive the file is copied.
        """
        if name not in self._source:
            raise CheckpointError(f"{self.path}: no tensor {name!r}.{did_you_mean(name, self._source)}")
        return self._source[name].read(name)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), one after the other."""
        return ((name, self.read(name)) for name in self.entries)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self.entries = {name: entry for name, (entry, _) in self._header.items()}

    def read(self, name: str) -> Tensor:
        """A mapping of its own for each tensor, so that a process that reads them all holds the pages of one."""
        entry, at = self._header[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype)
        skipped = at % mmap.ALLOCATIONGRANULARITY
        pages = self._pages(at - skipped, skipped + entry.nbytes)
        numbers = torch.frombuffer(pages, dtype=torch.uint8, count=entry.nbytes, offset=skipped)
        if at % entry.dtype.itemsize:  # other writers may leave numbers where no CPU likes them
            numbers = numbers.clone()
        return numbers.view(entry.dtype).reshape(entry.shape)

    def _pages(self, at: int, size: int) -> mmap.mmap:
        with open(self.path, "rb") as file:
            try:
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=at)
            except ValueError as error:
                raise CheckpointError(f"{self.path}: has changed since it was opened: {error}") from error


class _Pickle:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _unpickled(path)
        self.entries = {entry.name: entry for entry in entries_of(self._tensors.items())}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, mapped where torch can: not in the form of before torch 1.6."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or hostile pickle makes its reader stumble over
        raise CheckpointError(f"{path}: cannot be read as tensors alone: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; it must hold names and tensors")
    strange = [str(name) for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(f"{path}: {', '.join(strange)[:200]}: not a tensor with a name")
    return found


def _weights_file(path: Path) -> Path:
    """The file to begin with: the weights, or their index."""
    if path.is_file():
        if path.suffix not in (".safetensors", ".bin", ".json"):
            raise CheckpointError(f"{path}: weights are *.safetensors, *.bin, or their *.index.json")
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    for forms in ((WEIGHTS, INDEX), (PICKLE, PICKLE_INDEX)):
        there = [path / form for form in forms if (path / form).exists()]
        if len(there) > 1:
            raise CheckpointError(f"{path}: both {forms[0]} and {forms[1]}; name the one that is meant")
        if there:
            return there[0]
    return _only_one(path)


def _only_one(folder: Path) -> Path:
    """The one .safetensors file of a folder that has neither of the usual names."""
    found = sorted(folder.glob("*.safetensors"))
    if any(_SHARD.search(path.name) for path in found):
        raise CheckpointError(f"{folder}: shards without their index; {INDEX} is missing")
    if len(found) != 1:
        several = f": {', '.join(path.name for path in found)}; name the one that is meant" if found else ""
        raise CheckpointError(f"{folder}: no {WEIGHTS}, {INDEX} or {PICKLE}{several}")
    return found[0]


def _indexed(index: Path) -> dict[Path, list[str]]:
    """The shards that an index names, each with the names of its tensors."""
    where = read_json(index, index.read_bytes()).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{index}: damaged: no weight_map from names to files")
    shards: dict[Path, list[str]] = {}
    for name, file in where.items():
        _check_beside(index, name, file)
        shards.setdefault(index.parent / file, []).append(name)
    missing = sorted(path.name for path in shards if not path.is_file())
    if missing:
        raise CheckpointError(f"{index.parent}: missing: {', '.join(missing)}; {index.name} names them")
    return dict(sorted(shards.items()))


def _check_beside(index: Path, name: str, file: object) -> None:
    """No path, no drive, nothing that leads out of the folder: the name of a file of weights beside the index."""
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.(safetensors|bin)", file):
        raise CheckpointError(
            f"{index}: {name}: {file!r} is not the name of a .safetensors or .bin file in the same folder"
        )


def _check_named(shard: Path, held: set[str], named: set[str]) -> None:
    """What an index says that a shard holds is what it holds."""
    faults = [f"{name}: in the index, not in {shard.name}" for name in sorted(named - held)]
    faults += [f"{name}: in {shard.name}, which the index does not say" for name in sorted(held - named)]
    if faults:
        raise CheckpointError(f"{shard.parent}: index and files disagree:\n  " + "\n  ".join(faults))


def _check_once(sources: list[_Safetensors | _Pickle]) -> None:
    counts = Counter(name for source in sources for name in source.entries)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{sources[0].path.parent}: {', '.join(twice)}: in two files; a name belongs to one tensor"
        )
