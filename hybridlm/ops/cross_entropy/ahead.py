"""Linear layer and cross entropy, the gradients computed ahead, in the forward pass, while the logits are there."""

import torch
from torch import Tensor

from hybridlm.errors import UnsupportedError
from hybridlm.ops.backend import kernels
from hybridlm.ops.cross_entropy.reference import IGNORED


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, chunk: int, fused: bool) -> Tensor:
    """The sum over targets. Products are in the dtype of autocast, or of the weight. fused: by a Triton kernel."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (x, weight)]
    loss, _, _ = torch.ops.hybridlm.linear_cross_entropy(x, weight, targets, chunk, dtype, *wanted, fused)
    return loss


@torch.library.custom_op("hybridlm::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    dtype: torch.dtype,
    wants_x: bool,
    wants_weight: bool,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and those of its gradients that are wanted: of x, and of the weight, which is summed up in float32."""
    wide = torch.promote_types(dtype, torch.float32)
    dx, dw = _gradients(x, weight, wide, wants_x, wants_weight)
    loss = x.new_zeros((), dtype=wide)
    with torch.autocast(x.device.type, enabled=False):
        matrix = weight.to(dtype)
        for i, (part, target) in enumerate(zip(x.split(chunk), targets.split(chunk), strict=True)):
            part = part.to(dtype)
            losses, p = (_by_triton if fused else _softmax)(part @ matrix.mT, target)
            loss += losses
            if wants_x:
                dx[i * chunk : i * chunk + len(part)] = p @ matrix
            if wants_weight:
                _add_product(dw, p, part)
            del p  # or its memory would be there beside the next chunk's
    return loss, dx, dw


@_linear_cross_entropy.register_fake
def _(x, weight, targets, chunk, dtype, wants_x, wants_weight, fused):
    wide = torch.promote_types(dtype, torch.float32)
    return x.new_empty((), dtype=wide), *_gradients(x, weight, wide, wants_x, wants_weight)


def _gradients(x: Tensor, weight: Tensor, wide: torch.dtype, wants_x: bool, wants_weight: bool) -> list[Tensor]:
    """Memory for both, empty where one is not wanted."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else x.new_empty(0)
    return [dx, weight.new_zeros(weight.shape if wants_weight else 0, dtype=wide)]


def _softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits (m, v) -> the sum of the losses, and its gradient softmax(logits) - onehot(target), 0 where ignored.

    In the logits' own memory, if they are wide enough: fresh memory costs more than what is computed in it.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts, picked = targets != IGNORED, targets.clamp(min=0)[:, None]
    wide -= wide.amax(dim=1, keepdim=True)
    right = wide.gather(1, picked)
    total = wide.exp_().sum(dim=1, keepdim=True)
    losses = (total.log() - right).squeeze(1)
    p = wide.mul_(torch.where(counts[:, None], 1 / total, 0))
    p.scatter_add_(1, picked, -counts[:, None].to(p.dtype))
    return torch.where(counts, losses, 0).sum(), p.to(logits.dtype)


def _by_triton(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the logits' memory, whatever their dtype."""
    return kernels("hybridlm.ops.cross_entropy.triton").softmax_gradient_(logits, targets), logits


def _add_product(total: Tensor, p: Tensor, x: Tensor) -> None:
    """total += p^T x, without rounding the product to their dtype where the device can do that."""
    if x.is_cuda and x.dtype != total.dtype:
        total += torch.mm(p.mT, x, out_dtype=total.dtype)
    elif x.dtype == total.dtype:
        total.addmm_(p.mT, x)
    else:
        total += p.mT.to(total.dtype) @ x.to(total.dtype)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, dx, dw = output
    ctx.wanted, ctx.dtypes = inputs[5:7], (inputs[0].dtype, inputs[1].dtype)
    ctx.save_for_backward(dx, dw)
    ctx.mark_non_differentiable(dx, dw)
    ctx.set_materialize_grads(False)


def _scale(ctx, incoming: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "second derivatives of a language model's loss: its gradients are computed in the forward pass. Take the "
            "cross entropy of model(ids).logits instead"
        )
    pairs = zip(ctx.saved_tensors, ctx.wanted, ctx.dtypes, strict=True)
    dx, dw = ((incoming * gradient).to(dtype) if wanted else None for gradient, wanted, dtype in pairs)
    return dx, dw, *[None] * 6


_linear_cross_entropy.register_autograd(_scale, setup_context=_keep)
