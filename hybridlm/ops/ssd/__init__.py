"""State space duality, the heart of Mamba-2: one recurrence, computed as attention inside chunks."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked, triton_lacks
from hybridlm.ops.decoding import step_lacks
from hybridlm.ops.ssd import reference, vendor
from hybridlm.ops.ssd.reference import ssd_flops

__all__ = ["ssd", "ssd_flops"]


def ssd(
    x: Float[Tensor, "b t h p"],
    dt: Float[Tensor, "b t h"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b t g n"],
    C: Float[Tensor, "b t g n"],
    D: Float[Tensor, "h"] | None,
    *,
    state: Float[Tensor, "b h p n"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int = 64,
    in_place: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T,  y_t = H_t C_t + D x_t, head by head: (y, last H).

    Dao and Gu 2024, eq. 2 with scalar A, section 6 and Listing 1. Head i reads group i // (h / g) of B and C.
    dt: step sizes >= 0, softplus already applied; dt = 0 holds the state, which is how pads are passed over.
    A: negative. state: H before the first token (zero if None). document: non-decreasing along t; 0 continues the
    state, and H starts from zero wherever the number changes. chunk: tokens of a chunk, a matter of speed alone.
    in_place: the memory of `state` may be written over, and is then what is returned; for calls without gradients.
    Computed in at least float32, autocast or not, which is the dtype of H; y has the dtype of x. t >= 1.
    """
    one = x.shape[1] == 1
    ours = _step(x, dt, A, B, C, D, state, document, in_place) if one else _chunks(x, B, C)
    theirs = Offer(vendor.ssd, lambda: vendor.lacks(x, B, C))
    offers = {"triton": ours, "vendor": theirs, "reference": partial(reference.ssd, in_place=in_place)}
    run = resolve("ssd", backend, offers)
    with torch.autocast(x.device.type, enabled=False):
        return run(x, dt, A, B, C, D, state, document, chunk)


def _step(x, dt, A, B, C, D, state, document, in_place: bool) -> Offer:
    k = kernels("hybridlm.ops.ssd.triton_step")
    return Offer(
        k and k.ssd, step_lacks(x, state, dt, A, B, C, D, document=document, in_place=in_place), triton_asked(x)
    )


def _chunks(x: Tensor, B: Tensor, C: Tensor) -> Offer:
    k = kernels("hybridlm.ops.ssd.triton")
    return Offer(k and k.ssd, k.lacks(x, B, C) if k else triton_lacks(x), triton_asked(x))
