"""A sigmoid for kernels that would else be bound by their divisions."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    """By the root, which takes fewer instructions than a division that minds numbers beyond 2^126."""
    root = tl.rsqrt(1 + tl.exp2(z * -1.4426950408889634))
    return root * root
