"""What the kernels of SSD tell torch, whoever wrote them: shapes, and that one op gives the gradients of another."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridlm.ops.flops import count
from hybridlm.ops.ssd.reference import ssd_flops

CHUNK = 64  # tokens, in which FLOPs are counted


def register(ssd: Callable, gradients: Callable) -> None:
    """Register shapes and gradients of a custom op.

    ssd: (x, dt, A, B, C, D, state, document) -> (y, the last state, in at least float32).
    gradients: (dy, dlast or None, what ssd takes) -> those of x, dt, A, B, C, D, state; anything for what is None.
    """
    ssd.register_fake(_outputs)
    count(ssd, _flops, kept=True)
    count(gradients, lambda dy, dlast, *inputs: 2 * _flops(*inputs))  # each product has two gradients

    def pull_back(ctx, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *_, D, state, _ = saved = ctx.saved_tensors  # read once: a checkpoint's cannot be read again
        dy = x.new_zeros(x.shape) if dy is None else dy
        *found, dD, dstate = gradients(dy, dlast, *saved)
        return *found, None if D is None else dD, None if state is None else dstate, None

    ssd.register_autograd(pull_back, setup_context=_keep)


def _outputs(x, dt, A, B, C, D, state, document) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], *x.shape[2:], B.shape[3], dtype=wide)


def _flops(x: tuple, dt: tuple, A: tuple, B: tuple, *others: tuple | None) -> int:
    (b, t, h, p), (g, n) = x, B[2:]
    return b * sum(ssd_flops(t, h, p, g, n, CHUNK))


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)
