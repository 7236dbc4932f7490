"""Normalisation over the last axis. Statistics in at least float32; the result has the weight's dtype.

Our kernels take calls with gradients too, of rms_norm and gated_rms_norm; those gradients have none of their own.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked, triton_lacks
from hybridlm.ops.decoding import kernel_lacks, small_asked, with_gradients
from hybridlm.ops.norm import reference


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"], eps: float, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight. Zhang and Sennrich 2019, eq. 4. (..., d) -> (..., d)."""
    ours = _with_gradients if with_gradients(x, weight) else _without
    offers = {"triton": ours("rms_norm", 1, x, weight), "reference": reference.rms_norm}
    return resolve("rms_norm", backend, offers)(x, weight, eps)


def layer_norm(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"], bias: Float[Tensor, "d"], eps: float, backend: str = "auto"
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias. Ba et al. 2016, eq. 4. (..., d) -> (..., d)."""
    offers = {"triton": _without("layer_norm", 1, x, weight, bias), "reference": reference.layer_norm}
    return resolve("layer_norm", backend, offers)(x, weight, bias, eps)


def gated_rms_norm(
    y: Float[Tensor, "*b d"],
    z: Float[Tensor, "*b d"],
    weight: Float[Tensor, "d"],
    eps: float,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """RMSNorm(y silu(z)), each of `groups` equal parts of the width normalised apart; the gate comes first.

    Dao and Gu 2024, section 7.1 (the norm before the output projection). (..., d) -> (..., d); under autocast in its
    dtype, to which that projection would round it.
    """
    ours = _with_gradients if with_gradients(y, z, weight) else _without
    offers = {"triton": ours("gated_rms_norm", groups, y, z, weight), "reference": reference.gated_rms_norm}
    return resolve("gated_rms_norm", backend, offers)(y, z, weight, eps, groups, _as_autocast(weight))


def group_norm(
    x: Float[Tensor, "*b d"],
    weight: Float[Tensor, "d"],
    bias: Float[Tensor, "d"],
    eps: float,
    groups: int,
    backend: str = "auto",
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and variance of each of `groups` equal parts of the width.

    Wu and He 2018, eq. 1, with one position a group. (..., d) -> (..., d).
    """
    return resolve("group_norm", backend, {"reference": reference.group_norm})(x, weight, bias, eps, groups)


def l2_norm(x: Float[Tensor, "*b d"], eps: float, backend: str = "auto") -> Tensor:
    """x / sqrt(sum x^2 + eps), in at least float32: of length 1, or 0 where x is. (..., d) -> (..., d)."""
    return resolve("l2_norm", backend, {"reference": reference.l2_norm})(x, eps)


def _without(op: str, groups: int, x: Tensor, *others: Tensor) -> Offer:
    """Our kernel's, for calls without gradients."""
    k = kernels("hybridlm.ops.norm.triton")
    wide = "the kernel takes rows of at most 16384" if x.shape[-1] > 16384 else None
    return Offer(k and getattr(k, op), wide or kernel_lacks(x, *others), small_asked(x))


def _with_gradients(op: str, groups: int, x: Tensor, *others: Tensor) -> Offer:
    """Our kernels', for calls with gradients. Compiled, a gated norm would go over its inputs three times backward."""
    k = kernels("hybridlm.ops.norm.triton_gradients")
    asked = triton_asked(x) if op == "gated_rms_norm" else small_asked(x)
    return Offer(k and getattr(k, op), k.lacks(groups, x, *others) if k else triton_lacks(x), asked)


def _as_autocast(weight: Tensor) -> torch.dtype:
    """What a matrix product is computed in, of what has the weight's dtype."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)
