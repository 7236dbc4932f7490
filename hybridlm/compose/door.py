"""What a model accepts. Everything is looked at before anything happens, so that a refused call costs nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.compose.ends import Head
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, StateError, UnsupportedError
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.recording import recorded
from hybridlm.state import ModelState

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_call(
    spec: ModelSpec,
    inputs: Tensor,
    state: ModelState | None,
    valid: Tensor | None,
    segment_ids: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """SpecError or StateError unless a model of this spec and dtype can read the call; see `HybridLM.forward`."""
    _check_inputs(spec, inputs)
    for name, tensor in {"valid": valid, "segment_ids": segment_ids}.items():
        if tensor is not None:
            _check_tokens(name, tensor, inputs)
    if _values_known(inputs, valid):
        real = inputs if valid is None else inputs[valid]
        if spec.reads_tokens:
            _check_range("ids", real, spec.vocab_size)
        else:
            _check_finite("inputs", real, dtype)
    if state is not None:
        _check_state(spec, state, inputs)


def check_answer(
    spec: ModelSpec,
    inputs: Tensor,
    state: ModelState | None,
    valid: Tensor | None,
    segment_ids: Tensor | None,
    targets: Tensor | None,
) -> None:
    """UnsupportedError for an answer that the head cannot give, SpecError for targets that do not fit it."""
    pool = spec.output.pool
    if spec.output.type == "recover" and (segment_ids is not None or state is not None):
        name = "state" if segment_ids is None else "segment_ids"
        raise UnsupportedError(
            f"{name}: head is recover, which asks the last vector for all of one row; give each row whole, padded with "
            "valid"
        )
    if pool != "none" and segment_ids is not None:
        raise UnsupportedError(
            f"segment_ids: head.pool is {pool}, one answer a row, and a packed row holds several documents; give each "
            "a row of its own, padded with valid, or use pool: none"
        )
    if pool == "mean" and state is not None:
        raise UnsupportedError(
            "state: head.pool is mean, and a state does not keep the sum of what came before; read the whole row at "
            "once without a state, or use pool: last"
        )
    if targets is not None:
        _check_targets(spec, inputs, valid, targets)


def _check_inputs(spec: ModelSpec, inputs: Any) -> None:
    if spec.reads_tokens:
        _check_tokens("ids", inputs, None)
        return
    channels = spec.input.channels
    if not isinstance(inputs, Tensor):
        raise SpecError(f"inputs: a {type(inputs).__name__}; it must be a tensor of shape (batch, time, {channels})")
    if inputs.ndim != 3 or 0 in inputs.shape or inputs.shape[2] != channels:
        raise SpecError(
            f"inputs: shape {tuple(inputs.shape)}; with embed: linear it must be (batch, time, {channels}), the first "
            "two at least 1"
        )
    if inputs.dtype not in FLOATS:
        raise SpecError(f"inputs: dtype {inputs.dtype}; it must be one of {', '.join(map(str, FLOATS))}")


def _check_targets(spec: ModelSpec, inputs: Tensor, valid: Tensor | None, targets: Any) -> None:
    """Of the head's shape and dtype, and where they count of its range."""
    head = spec.output
    if head.type == "lm":
        _check_tokens("targets", targets, inputs)
    else:
        _check_head_targets(head, inputs.shape[:2], targets)
    if _values_known(targets, valid):
        real = targets if valid is None or head.pool != "none" else targets[valid]
        if head.type == "regress":
            _check_finite("targets", real[~real.isnan()], real.dtype)
        else:
            _check_range(
                "targets", real[real.long() != IGNORED], spec.outputs, "token id" if head.type == "lm" else "class"
            )


def _check_head_targets(head: Head, rows: torch.Size, targets: Any) -> None:
    shape = rows if head.pool == "none" else rows[:1]
    words = "(batch, time" if head.pool == "none" else "(batch"
    if head.type == "regress":
        shape, words, allowed = (*shape, head.outputs), f"{words}, {head.outputs})", FLOATS
    else:
        words, allowed = f"{words})", INTEGERS
    why = f"head {head.type}" if head.type == "recover" else f"head {head.type} with pool: {head.pool}"
    if not isinstance(targets, Tensor):
        raise SpecError(f"targets: a {type(targets).__name__}; it must be a tensor of shape {words}")
    if tuple(targets.shape) != tuple(shape):
        raise SpecError(f"targets: shape {tuple(targets.shape)}; {why} takes {words}, here {tuple(shape)}")
    if targets.dtype not in allowed:
        raise SpecError(f"targets: dtype {targets.dtype}; {why} takes one of {', '.join(map(str, allowed))}")


def _check_state(spec: ModelSpec, state: Any, inputs: Tensor) -> None:
    if not isinstance(state, ModelState):
        raise StateError(f"state: a {type(state).__name__}; it must come from model.init_state or an earlier call")
    state.check()
    name = "ids" if spec.reads_tokens else "inputs"
    if state.fingerprint != spec.fingerprint:
        raise StateError(
            f"the state belongs to another model: its spec has fingerprint {state.fingerprint}, this model's "
            f"{spec.fingerprint}"
        )
    if state.batch != inputs.shape[0]:
        raise StateError(f"the state has {state.batch} rows and {name} {inputs.shape[0]}; use state.select(rows)")
    if state.position.device != inputs.device:
        raise StateError(f"the state is on {state.position.device} and {name} on {inputs.device}")


def _check_tokens(name: str, tensor: Any, inputs: Tensor | None) -> None:
    """An integer tensor (bool for valid) of two dimensions, t >= 1, and those of the inputs."""
    if not isinstance(tensor, Tensor):
        raise SpecError(f"{name}: a {type(tensor).__name__}; it must be a tensor of shape (batch, time)")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise SpecError(f"{name}: shape {tuple(tensor.shape)}; it must be (batch, time), both at least 1")
    if name == "valid" and tensor.dtype != torch.bool:
        raise SpecError(f"valid: dtype {tensor.dtype}; it must be bool, True at real tokens")
    if name != "valid" and tensor.dtype not in INTEGERS:
        raise SpecError(f"{name}: dtype {tensor.dtype}; it must be one of {', '.join(map(str, INTEGERS))}")
    if inputs is not None and tensor.shape != inputs.shape[:2]:
        what = "ids have" if inputs.ndim == 2 else "inputs have (batch, time)"
        raise SpecError(f"{name}: shape {tuple(tensor.shape)}; {what} {tuple(inputs.shape[:2])}")


def _values_known(*tensors: Tensor | None) -> bool:
    """Whether there are numbers that cost nothing to look at: on the CPU, outside recorded calls and torch.func."""
    return not any(x is not None and (x.device.type != "cpu" or recorded(x) or is_wrapped(x)) for x in tensors)


def _check_range(name: str, values: Tensor, vocab: int, what: str = "token id") -> None:
    """On the CPU; a GPU's own assertion says it there."""
    if values.numel() == 0:
        return
    least, most = int(values.long().min()), int(values.long().max())
    if least < 0 or most >= vocab:
        bad = least if least < 0 else most
        there = f"the vocabulary has 0 to {vocab - 1}" if what == "token id" else f"there are 0 to {vocab - 1}"
        raise SpecError(f"{name}: {bad} is no {what}; {there}")


def _check_finite(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """In the dtype that computes. On the CPU; on a GPU what is not finite shows in the loss."""
    if not (finite := values.to(dtype).isfinite()).all():
        bad = values[~finite].flatten()[0].item()
        where = "" if name == "targets" else f" in {dtype}, pads apart"
        raise SpecError(f"{name}: {bad}; every number must be finite{where}")
