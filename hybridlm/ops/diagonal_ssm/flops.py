"""What diagonal systems cost: FLOPs of `diagonal_ssm` for one row, counted by hand along reference.py."""

from math import log2

from hybridlm.ops.long_conv.reference import fft_length
from hybridlm.ops.lti import Blocks


def diagonal_flops(d: int, n: int, t: int, state: bool) -> tuple[int, int, float]:
    """(matrix products, recurrence, FFTs) of t tokens, d systems of n = N states, without a state or from one.

    matrix products: 2 m n k each. FFTs: 5 N log2 N a complex transform of length N, half of it a real one.
    recurrence: one token takes 16 a conjugate couple (E z 6, its difference from z 2, B u 2, their sum 2, Re(C z) 4)
    and 2 for D u. More tokens take none.
    Not counted: forming the discrete system, powers, products of spectra, gathers; O(d n sqrt(t) + d t).
    """
    if t == 1:
        return 0, d * (8 * n + 2), 0.0
    log_t = (t - 1).bit_length()
    blocks = Blocks.of(t, (log_t + 1) // 2)
    product = 2 * d * n * blocks.count * blocks.size  # the kernel; a response; a forced state
    fft = 2.5 * fft_length(2 * t - 1) * log2(fft_length(2 * t - 1))
    return product * (1 + 2 * state), 0, 3 * d * fft
