"""Causal convolution with a filter as long as the sequence."""

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.long_conv import reference


def long_conv(
    u: Float[Tensor, "b t d"],
    k: Float[Tensor, "d l"],
    D: Float[Tensor, "d"] | None = None,
    *,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t d"]:
    """y_i = sum_{j <= i} k_j u_{i-j} + D u_i, channel by channel, exactly causal (zero-padded FFT).

    u: (b, t, d). k: (d, l), l >= t; cast to the dtype of the computation, promote(float32, u's). D: (d), the skip.
    document: (b, t) non-decreasing; tokens of different numbers never see each other, not even through rounding.
    Returns (b, t, d) in u's dtype. Cost: O(t log t); of packed rows on a GPU, which are not looked at, O(t log^2 t).
    Source: Gu, Goel, Re (2021), section 2.4.
    """
    return resolve("long_conv", backend, {"reference": reference.long_conv})(u, k, D, document)
