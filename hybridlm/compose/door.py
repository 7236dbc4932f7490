"""What a model accepts. Everything is looked at before anything happens, so that a refused call costs nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, StateError
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.state import ModelState

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)


def check_call(
    spec: ModelSpec,
    ids: Tensor,
    state: ModelState | None,
    valid: Tensor | None,
    segment_ids: Tensor | None,
    targets: Tensor | None = None,
) -> None:
    """SpecError or StateError unless a model of this spec can read the call; see `HybridLM.forward`."""
    _check_tokens("ids", ids, None)
    for name, tensor in {"valid": valid, "segment_ids": segment_ids, "targets": targets}.items():
        if tensor is not None:
            _check_tokens(name, tensor, ids.shape)
    if _values_known(ids, valid, targets):
        _check_range("ids", ids if valid is None else ids[valid], spec.vocab_size)
        if targets is not None:
            real = targets if valid is None else targets[valid]
            _check_range("targets", real[real != IGNORED], spec.vocab_size)
    if state is not None:
        _check_state(spec, state, ids)


def _check_state(spec: ModelSpec, state: Any, ids: Tensor) -> None:
    if not isinstance(state, ModelState):
        raise StateError(f"state: a {type(state).__name__}; it must come from model.init_state or an earlier call")
    state.check()
    if state.fingerprint != spec.fingerprint:
        raise StateError(
            f"the state belongs to another model: its spec has fingerprint {state.fingerprint}, this model's "
            f"{spec.fingerprint}"
        )
    if state.batch != ids.shape[0]:
        raise StateError(f"the state has {state.batch} rows and ids {ids.shape[0]}; use state.select(rows)")
    if state.position.device != ids.device:
        raise StateError(f"the state is on {state.position.device} and ids on {ids.device}")


def _check_tokens(name: str, tensor: Any, shape: torch.Size | None) -> None:
    """An integer tensor (bool for valid) of two dimensions, t >= 1, and of the shape of ids."""
    if not isinstance(tensor, Tensor):
        raise SpecError(f"{name}: a {type(tensor).__name__}; it must be a tensor of shape (batch, time)")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise SpecError(f"{name}: shape {tuple(tensor.shape)}; it must be (batch, time), both at least 1")
    if name == "valid" and tensor.dtype != torch.bool:
        raise SpecError(f"valid: dtype {tensor.dtype}; it must be bool, True at real tokens")
    if name != "valid" and tensor.dtype not in INTEGERS:
        raise SpecError(f"{name}: dtype {tensor.dtype}; it must be one of {', '.join(map(str, INTEGERS))}")
    if shape is not None and tensor.shape != shape:
        raise SpecError(f"{name}: shape {tuple(tensor.shape)}; ids have {tuple(shape)}")


def _values_known(*tensors: Tensor | None) -> bool:
    """Whether there are numbers to look at: not while compiling, nor under torch.func."""
    return not (torch.compiler.is_compiling() or any(x is not None and is_wrapped(x) for x in tensors))


def _check_range(name: str, values: Tensor, vocab: int) -> None:
    """On the CPU, where looking costs nothing; a GPU's own assertion says it there."""
    if values.device.type != "cpu" or values.numel() == 0:
        return
    least, most = int(values.long().min()), int(values.long().max())
    if least < 0 or most >= vocab:
        bad = least if least < 0 else most
        raise SpecError(f"{name}: {bad} is no token id; the vocabulary has 0 to {vocab - 1}")
