"""How tensors lie in safetensors files: what a header says, and which file of several holds which tensor.

A file is 8 bytes (the header's length, little endian), the header (JSON: {name: {dtype, shape, data_offsets}}), and the
data without gaps, as https://github.com/huggingface/safetensors says. What is written here is, byte by byte, what that
library writes, but the header comes from what is known of the tensors before the first of them exists.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMS = (WEIGHTS, INDEX, f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors")
"""Patterns of the names that weights may have in a folder."""
MAX_BYTES = 5 * 10**9
"""Of tensors in one file, as on the Hub."""
METADATA = "__metadata__"

DTYPES = {  # the order is that of the format: wide numbers come first in a file, so that all of them are aligned
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANK = {dtype: rank for rank, dtype in enumerate(NAMES)}


class Entry(NamedTuple):
    """What is known of a tensor without its numbers."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shard(NamedTuple):
    """One file and what it holds, in the order in which it lies there."""

    file: str
    entries: list[Entry]

    def header(self) -> bytes:
        """The beginning of the file, up to where the data begin."""
        about: dict[str, Any] = {METADATA: {"format": "pt"}}
        begin = 0
        for name, dtype, shape in self.entries:
            end = begin + math.prod(shape) * dtype.itemsize
            about[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def entries_of(tensors: Iterable[tuple[str, Tensor]]) -> list[Entry]:
    """The entries of tensors, on any device: `entries_of(model.state_dict().items())`."""
    return [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]


def plan_shards(entries: Iterable[Entry], max_bytes: int = MAX_BYTES) -> list[Shard]:
    """Which file holds which tensors: as many as fit, in the order given; a tensor over the limit is alone in its own.

    CheckpointError: two of one name, a dtype that the format does not know, a name that it cannot hold.
    """
    whole("max_bytes", max_bytes, high=1 << 62)
    entries = [_checked(Entry(*entry)) for entry in entries]
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        raise CheckpointError(f"{', '.join(twice)}: given twice; a name belongs to one tensor")
    groups: list[list[Entry]] = [[]]
    room = max_bytes
    for entry in entries:
        if groups[-1] and entry.nbytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(entry)
        room -= entry.nbytes
    return [Shard(_file(k, len(groups)), sorted(group, key=_place)) for k, group in enumerate(groups, 1)]


def _checked(entry: Entry) -> Entry:
    name, dtype, shape = entry
    if not isinstance(name, str) or name == METADATA or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise CheckpointError(f"{name!r} cannot be the name of a tensor in a safetensors file")
    if dtype not in NAMES:
        raise CheckpointError(f"{name}: safetensors files hold no {dtype}; they hold {', '.join(map(str, NAMES))}")
    return Entry(name, dtype, tuple(whole(f"{name}: shape", size, low=0, high=1 << 62) for size in shape))


def _place(entry: Entry) -> tuple[int, bytes]:
    return RANK[entry.dtype], entry.name.encode()


def _file(k: int, of: int) -> str:
    return WEIGHTS if of == 1 else f"model-{k:05d}-of-{of:05d}.safetensors"


def index_of(shards: Sequence[Shard]) -> str:
    """The text of model.safetensors.index.json: the bytes of all tensors, and the file of each."""
    where = {entry.name: shard.file for shard in shards for entry in shard.entries}
    total = sum(entry.nbytes for shard in shards for entry in shard.entries)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2) + "\n"
