"""Mamba-3's recurrence: a decaying, rotating matrix state that takes in this token and the one before it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.trapezoidal_ssd import reference
from hybridlm.ops.trapezoidal_ssd.reference import Memory, trapezoidal_ssd_flops

__all__ = ["Memory", "trapezoidal_ssd", "trapezoidal_ssd_flops"]


def trapezoidal_ssd(
    x: Float[Tensor, "b t h p"],
    dt: Float[Tensor, "b t h"],
    A: Float[Tensor, "b t h"],
    trap: Float[Tensor, "b t h"],
    turn: Float[Tensor, "b t h a"],
    B: Float[Tensor, "b t h n"],
    C: Float[Tensor, "b t h n"],
    *,
    state: Memory | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Memory]:
    """H_t = e^{dt_t A_t} R_t (H_{t-1} + (1 - l_t) dt_t x_{t-1} B_{t-1}^T) + l_t dt_t x_t B_t^T,  y_t = H_t C_t.

    Lahoti et al. 2026 (Mamba-3), section 3.1 and, for the rotation, 3.2; l is `trap`, in [0, 1]: 1 is Euler's rule and
    1/2 the trapezoidal rule. R_t turns pair i of the state's n numbers, 2 i and 2 i + 1, by the angle -turn_{t,i}, for
    i < a <= n / 2; the others do not turn.
    dt: step sizes >= 0; with dt = 0 and turn = 0 the state holds, which is how pads are passed over. A: negative.
    state: what `Memory` says, before the first token (zeros if None); the same is returned, after the last.
    lengths: how many tokens of each row are real, where dt is 0 after them. document: non-decreasing along t; 0
    continues the state, and wherever the number changes the state starts from zero and no token is before.
    chunk: tokens of a chunk, a matter of speed alone.
    Computed in at least float32, autocast or not, which is the dtype of H; y has the dtype of x. t >= 1.
    """
    run = resolve("trapezoidal_ssd", backend, {"reference": reference.trapezoidal_ssd})
    with torch.autocast(x.device.type, enabled=False):
        return run(x, dt, A, trap, turn, B, C, state, lengths, document, chunk)
