"""Rotary position embedding."""

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve
from hybridlm.ops.decoding import kernel_lacks, small_asked
from hybridlm.ops.rotary import reference


def rotary(
    x: Float[Tensor, "b t h p"], positions: Int[Tensor, "b t"], theta: float = 10000.0, backend: str = "auto"
) -> Float[Tensor, "b t h p"]:
    """Rotate the pairs (x_i, x_{i + p/2}) by positions * theta^(-2i/p). Su et al. 2021, eq. 34; p is even.

    Angles are taken in float64: at position 100,000 a float32 angle is off by 4e-3.
    """
    k = kernels("hybridlm.ops.rotary.triton")
    offers = {"triton": Offer(k and k.rotary, kernel_lacks(x), small_asked(x)), "reference": reference.rotary}
    return resolve("rotary", backend, offers)(x, positions, theta)
