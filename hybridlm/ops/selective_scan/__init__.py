"""The selective scan of Mamba-1: a diagonal recurrence whose step size, input and output maps are functions of x."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked, triton_lacks
from hybridlm.ops.decoding import step_lacks, with_gradients
from hybridlm.ops.selective_scan import reference, vendor
from hybridlm.ops.selective_scan.reference import scan_flops

__all__ = ["scan_flops", "selective_scan"]

WIDE = 32  # states, above which mamba_ssm's forward is the faster one: with 64 on an H200 14.9 ms, 34.2 ours


def selective_scan(
    x: Float[Tensor, "b t d"],
    dt: Float[Tensor, "b t d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    D: Float[Tensor, "d"] | None,
    *,
    state: Float[Tensor, "b d n"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    zoh: bool = False,
    in_place: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n"]]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,  y_t = C_t . h_t + D x_t, channel by channel: (y, last h).

    Gu and Dao 2023, eq. 2a and 2b, Algorithm 2; the input is discretised by Euler (B-bar = dt B), as in their code.
    zoh: by the exact zero-order hold of eq. 4 instead, B-bar = (exp(dt A) - 1) / A B.
    dt: step sizes >= 0, softplus already applied; dt = 0 holds the state, which is how pads are passed over.
    A: negative. state: h before the first token (zero if None). document: non-decreasing along t; 0 continues the
    state, and h starts from zero wherever the number changes.
    in_place: the memory of `state` may be written over, and is then what is returned; for calls without gradients.
    Computed in at least float32, autocast or not, which is the dtype of h; y has the dtype of x. t >= 1.
    """
    step = not zoh and step_lacks(x, state, dt, A, B, C, D, document=document, in_place=in_place) is None
    offers = {
        "triton": _step(x) if step else _walk(x, dt, A, zoh),
        "vendor": Offer(vendor.selective_scan, lambda: vendor.lacks(x, A, state, document, zoh)),
    }
    if A.shape[1] > WIDE and not (step or with_gradients(x, dt, A, B, C, D, state)):
        offers = dict(reversed(offers.items()))
    offers["reference"] = reference.selective_scan
    run = resolve("selective_scan", backend, offers)
    with torch.autocast(x.device.type, enabled=False):
        return run(x, dt, A, B, C, D, state, document, zoh)


def _step(x: Tensor) -> Offer:
    """The kernel of decoding, for a call that it can take."""
    return Offer(kernels("hybridlm.ops.selective_scan.triton_step").selective_scan, asked=triton_asked(x))


def _walk(x: Tensor, dt: Tensor, A: Tensor, zoh: bool) -> Offer:
    """The kernels for many tokens."""
    walk = kernels("hybridlm.ops.selective_scan.triton")
    if walk is None:
        return Offer(None, triton_lacks(x))
    return Offer(walk.selective_scan, walk.lacks(x, dt, A, zoh), triton_asked(x))
