"""Tensors in one file that carries its own checksum: a safetensors file with the sha256 of itself in its header."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from hybridlm.files import as_path, atomic_write

BLANK = "0" * 64
_SEAL = re.compile(rb'"seal":"([0-9a-f]{64})"')


def write_sealed(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], error: type) -> None:
    """Write tensors, and what JSON can say about them, to one file, atomically. `error`: path is none."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob = safetensors.torch.save(held, {"about": json.dumps(about), "seal": BLANK})
    atomic_write(as_path(path, error), seal(blob))


def read_sealed(path: str | Path, error: type) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, bit for bit, and what was said about them. `error`: no such file, no sealed one, or damaged."""
    path = as_path(path, error)
    if not path.is_file():
        raise error(f"{path}: no such file")
    blob = path.read_bytes()
    if not is_sealed(blob):
        raise error(f"{path}: not a file that hybridlm saved, or damaged: its checksum does not fit its content")
    size = int.from_bytes(blob[:8], "little")  # a safetensors file is 8 bytes of header length, then JSON
    about = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["about"])
    return safetensors.torch.load(blob), about


def seal(blob: bytes) -> bytes:
    """Put the sha256 of the whole blob where its text says `"seal":"000..."`."""
    return _SEAL.sub(b'"seal":"' + hashlib.sha256(blob).hexdigest().encode() + b'"', blob, count=1)


def is_sealed(blob: bytes) -> bool:
    """Whether the blob carries its own sha256: not one bit has changed since `seal`."""
    found = _SEAL.search(blob)
    if found is None:
        return False
    original = blob[: found.start(1)] + BLANK.encode() + blob[found.end(1) :]
    return hashlib.sha256(original).hexdigest().encode() == found.group(1)
