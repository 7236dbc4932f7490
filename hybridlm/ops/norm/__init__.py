"""Normalisation over the last axis. Statistics in at least float32; the result has the weight's dtype."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve
from hybridlm.ops.decoding import kernel_lacks, small_asked
from hybridlm.ops.norm import reference


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"], eps: float, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight. Zhang and Sennrich 2019, eq. 4. (..., d) -> (..., d)."""
    k = kernels("hybridlm.ops.norm.triton")
    offers = {"triton": _offer(k and k.rms_norm, x, weight), "reference": reference.rms_norm}
    return resolve("rms_norm", backend, offers)(x, weight, eps)


def layer_norm(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"], bias: Float[Tensor, "d"], eps: float, backend: str = "auto"
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias. Ba et al. 2016, eq. 4. (..., d) -> (..., d)."""
    k = kernels("hybridlm.ops.norm.triton")
    offers = {"triton": _offer(k and k.layer_norm, x, weight, bias), "reference": reference.layer_norm}
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

    Dao and Gu 2024, section 7.1 (the norm before the output projection). (..., d) -> (..., d).
    """
    k = kernels("hybridlm.ops.norm.triton")
    offers = {"triton": _offer(k and k.gated_rms_norm, y, z, weight), "reference": reference.gated_rms_norm}
    return resolve("gated_rms_norm", backend, offers)(y, z, weight, eps, groups)


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


def _offer(run: Callable | None, x: Tensor, *others: Tensor) -> Offer:
    """Our kernel's, for calls without gradients."""
    wide = "the kernel takes rows of at most 16384" if x.shape[-1] > 16384 else None
    return Offer(run, wide or kernel_lacks(x, *others), small_asked(x))
