"""A ModelState as one safetensors file that carries its own checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hybridlm.context import Cursor, outside_inference
from hybridlm.errors import StateError
from hybridlm.files import BLANK_SEAL, as_path, atomic_write, seal, sealed
from hybridlm.registry import mixers
from hybridlm.state import Layer, LayerState, ModelState

VERSION = 1


def save_state(state: ModelState, path: str | Path) -> None:
    """Write every tensor of the state, its clock, and what kind each layer is. Atomic."""
    path = as_path(path, StateError)
    tensors: dict[str, Tensor] = {"position": state.cursor.position, "segment": state.cursor.segment}
    kinds = [_collect(layer, f"layers.{i}", tensors) for i, layer in enumerate(state.layers)]
    about = {
        "version": VERSION,
        "kinds": kinds,
        "max_length": state.max_length,
        "fingerprint": state.fingerprint,
        "over": state.cursor.over,
    }
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob = safetensors.torch.save(held, {"hybridlm_state": json.dumps(about), "seal": BLANK_SEAL})
    atomic_write(path, seal(blob))


def load_state(path: str | Path, *, device: torch.device | str | None = None) -> ModelState:
    """Read a state that `ModelState.save` wrote, bit for bit.

    StateError: the file is missing, damaged (one flipped bit is enough), or not a state.
    """
    path = as_path(path, StateError)
    if not path.is_file():
        raise StateError(f"{path}: no such file")
    blob = path.read_bytes()
    if not sealed(blob):
        raise StateError(f"{path}: not a saved state, or damaged: its checksum does not fit its content")
    about = _about(blob)
    with outside_inference():
        tensors = {
            name: tensor.to("cpu" if device is None else device)
            for name, tensor in safetensors.torch.load(blob).items()
        }
    layers = [_restore(kind, f"layers.{i}", tensors) for i, kind in enumerate(about["kinds"])]
    cursor = Cursor(tensors["position"], tensors["segment"], None, about["over"])
    return ModelState(layers, cursor, about["max_length"], about["fingerprint"])


def _about(blob: bytes) -> dict[str, Any]:
    """The metadata of a safetensors blob: 8 bytes of header length, then JSON."""
    size = int.from_bytes(blob[:8], "little")
    about = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["hybridlm_state"])
    if about["version"] != VERSION:
        raise StateError(f"the state was saved in format {about['version']}; this hybridlm reads format {VERSION}")
    return about


def _collect(layer: Layer, prefix: str, tensors: dict[str, Tensor]) -> str | list:
    """Gather a layer's tensors under its prefix; returns its kind, or a list of kinds for a tuple."""
    if isinstance(layer, tuple):
        return [_collect(part, f"{prefix}.{i}", tensors) for i, part in enumerate(layer)]
    tensors.update({f"{prefix}.{name}": tensor for name, tensor in layer.tensors().items()})
    return layer.kind


def _restore(kind: str | list, prefix: str, tensors: dict[str, Tensor]) -> Layer:
    if isinstance(kind, list):
        return tuple(_restore(part, f"{prefix}.{i}", tensors) for i, part in enumerate(kind))
    held = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] == prefix}
    state: type[LayerState] = mixers.get(kind).State
    return state(**{name.rpartition(".")[2]: tensor for name, tensor in held.items()})
