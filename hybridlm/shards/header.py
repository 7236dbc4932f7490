"""Reading what a safetensors file says of its tensors, and holding it to that."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hybridlm.errors import CheckpointError
from hybridlm.shards.layout import DTYPES, METADATA, Entry

LARGEST_HEADER = 100_000_000
"""Bytes: the format's own limit."""


def read_header(path: Path) -> dict[str, tuple[Entry, int]]:
    """Every tensor of a file, as they lie in it, and where in the file its numbers begin.

    CheckpointError: no safetensors file, a file that is cut off or has gaps, a name twice, a dtype that is unknown.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise CheckpointError(f"{path}: cut off, or no safetensors file: {size} bytes end within its header")
        text = file.read(length)
    header = read_json(path, text)
    header.pop(METADATA, None)
    found = sorted((_extent(path, name, about) for name, about in header.items()), key=lambda one: one[1:])
    _check_gapless(path, found, size - 8 - length)
    return {entry.name: (entry, 8 + length + begin) for entry, begin, _ in found}


def read_json(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object that a file of weights holds. CheckpointError: it is none, or has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(names) > len(set(names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(f"{path}: {', '.join(twice)}: there twice; a name belongs to one tensor")
        return dict(pairs)

    try:
        found = json.loads(text.decode(), object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: damaged: a {type(found).__name__} where names and tensors should be")
    return found


def _extent(path: Path, name: str, about: Any) -> tuple[Entry, int, int]:
    """What a header says of one tensor: its entry, and the bytes where it begins and ends in the data."""
    where = f"{path}: {name}"
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: damaged: {str(about)[:80]} is not dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {dtype!r} cannot be read here; known are {', '.join(DTYPES)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: damaged: shape {shape!r}, data_offsets {offsets!r}")
    begin, end = offsets
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise CheckpointError(f"{where}: damaged: {end - begin} bytes for {dtype} of shape {shape}, which has {wanted}")
    return Entry(name, DTYPES[dtype], tuple(shape)), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _check_gapless(path: Path, found: list[tuple[Entry, int, int]], size: int) -> None:
    at = 0
    for entry, begin, end in found:
        if begin != at:
            raise CheckpointError(f"{path}: {entry.name}: damaged: begins at byte {begin} of the data instead of {at}")
        at = end
    if at != size:
        what = "cut off" if size < at else "damaged"
        raise CheckpointError(f"{path}: {what}: {size} bytes of data, its tensors have {at}")
