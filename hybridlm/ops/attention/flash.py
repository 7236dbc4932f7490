"""Attention by the flash-attn package, version 2.7 or later: Dao 2023, arXiv:2307.08691.

It is asked for bfloat16 and head widths up to 128 only, which every build of it has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.backend import found, missing
from hybridlm.ops.flops import count

INTERFACE = "flash_attn.flash_attn_interface"
WIDEST = 128


def lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the package cannot take these; None if it can."""
    if not q.is_cuda:
        return "flash-attn needs a GPU"
    if (why := missing(INTERFACE, "_wrapped_flash_attn_forward")) is not None:
        return why
    if torch.bfloat16 != q.dtype or q.dtype != k.dtype or q.dtype != v.dtype:
        return "flash-attn is taken in bfloat16 only"
    if q.shape[-1] % 8 or q.shape[-1] > WIDEST or v.shape[-1] != q.shape[-1]:
        return f"flash-attn is taken for heads of one width, a multiple of 8 up to {WIDEST}"
    return None


# --------------------------------------------------------------------------------------------------- over a last window
def window_attention(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """Query i stands at key i + s - t and sees `size` keys up to that one."""
    return _window(q, k, v, size)[0]


@torch.library.custom_op("hybridlm::flash_attn_window", mutates_args=())
def _window(q: Tensor, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, Tensor]:
    attend = found(INTERFACE, "_wrapped_flash_attn_forward")
    return tuple(attend(q, k, v, 0.0, q.shape[-1] ** -0.5, True, size - 1, 0, 0.0, None, False)[:2])


@_window.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(b, h, t, dtype=torch.float32)


@torch.library.custom_op("hybridlm::flash_attn_window_backward", mutates_args=())
def _window_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    pull_back, grads = found(INTERFACE, "_wrapped_flash_attn_backward"), _fresh(q, k, v)
    rest = (0.0, q.shape[-1] ** -0.5, True, size - 1, 0, 0.0, None, torch.are_deterministic_algorithms_enabled())
    pull_back(dy, q, k, v, y, sums, *grads, *rest)
    return grads


@_window_backward.register_fake
def _(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(q, k, v)


def _fresh(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in tensors)


def _keep_window(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.size = inputs[3]


def _pull_back_window(ctx, dy: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_window_backward(dy.contiguous(), *ctx.saved_tensors, ctx.size), None


_window.register_autograd(_pull_back_window, setup_context=_keep_window)


def _window_flops(q: tuple, k: tuple, v: tuple, size: int) -> int:
    """Of two products over the pairs that see each other."""
    (b, t, h, p), s = q, k[1]
    full = max(0, min(t, s - size + 1))  # queries that see a whole window
    return 4 * b * h * p * (full * size + sum(range(s - t + 1, s - full + 1)))


count(_window, _window_flops, kept=True)
count(_window_backward, lambda dy, q, k, v, y, sums, size: 5 * _window_flops(q, k, v, size) // 2)


# ---------------------------------------------------------------------------------------------------- inside documents
def packed_lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the package cannot take a call with documents; None if it can."""
    if torch.compiler.is_compiling() or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
        return "flash-attn wants documents counted, which can be neither compiled nor captured"
    return lacks(q, k, v)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, document: Tensor, size: int | None = None, scale: float | None = None
) -> Tensor:
    """Causal attention inside each document, over the last `size` tokens if given."""
    bounds, longest = _bounds(document)
    size, scale = longest if size is None else size, q.shape[-1] ** -0.5 if scale is None else scale
    y, _ = _packed(*(x.flatten(0, 1) for x in (q, k, v)), bounds, longest, size, scale)
    return y.unflatten(0, q.shape[:2])


def _bounds(document: Tensor) -> tuple[Tensor, int]:
    """document (b, t) -> where documents begin in b * t tokens, and their end, int32; tokens of the longest."""
    begins = F.pad(document[:, 1:] != document[:, :-1], (1, 0), value=True)
    starts = begins.flatten().nonzero().squeeze(1)
    bounds = F.pad(starts, (0, 1), value=document.numel())
    return bounds.to(torch.int32), int(bounds.diff().max())


@torch.library.custom_op("hybridlm::flash_attn_packed", mutates_args=())
def _packed(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, size: int, scale: float
) -> tuple[Tensor, Tensor]:
    attend = found(INTERFACE, "_wrapped_flash_attn_varlen_forward")
    return tuple(attend(q, k, v, bounds, bounds, longest, longest, 0.0, scale, True, size - 1, 0)[:2])


@_packed.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, size: int, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("hybridlm::flash_attn_packed_backward", mutates_args=())
def _packed_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    y: Tensor,
    sums: Tensor,
    longest: int,
    size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    pull_back, grads = found(INTERFACE, "_wrapped_flash_attn_varlen_backward"), _fresh(q, k, v)
    rest = (0.0, scale, True, size - 1, 0, 0.0, None, torch.are_deterministic_algorithms_enabled())
    pull_back(dy, q, k, v, y, sums, *grads, bounds, bounds, longest, longest, *rest)
    return grads


@_packed_backward.register_fake
def _(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    y: Tensor,
    sums: Tensor,
    longest: int,
    size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(q, k, v)


def _keep_packed(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.sizes = inputs[4:]


def _pull_back_packed(ctx, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_packed_backward(dy.contiguous(), *ctx.saved_tensors, *ctx.sizes), None, None, None, None


_packed.register_autograd(_pull_back_packed, setup_context=_keep_packed)


# ----------------------------------------------------------------------------------------------------------- to a cache
def cached_lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the package cannot take a call to a cache; None if it can."""
    if q.shape[1] != 1:
        return "flash-attn is taken for one query a row"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "flash-attn has no gradient with a cache"
    return lacks(q, k, v)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, extent: int, scale: float | None) -> Tensor:
    lengths = positions[:, 0].clamp(max=k.shape[1] - 1).to(torch.int32) + 1
    return _cached(q, k, v, lengths, q.shape[-1] ** -0.5 if scale is None else scale)


@torch.library.custom_op("hybridlm::flash_attn_cached", mutates_args=())
def _cached(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    attend = found(INTERFACE, "flash_attn_with_kvcache")
    return attend(q, k, v, cache_seqlens=lengths, softmax_scale=scale)


@_cached.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)
