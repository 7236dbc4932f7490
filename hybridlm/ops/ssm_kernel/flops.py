"""What S4 costs: FLOPs of `s4_scan` for one row, counted by hand along reference.py."""

from math import log2

from hybridlm.ops.long_conv.reference import fft_length
from hybridlm.ops.lti import Blocks
from hybridlm.ops.ssm_kernel.reference import LOG_BLOCK


def s4_flops(d: int, n: int, t: int, state: bool) -> tuple[int, int, float]:
    """(matrix products, recurrence, FFTs) of t tokens, d channels, n = N states, without a state or from one.

    matrix products: 2 m n k each. FFTs: 5 N log2 N a complex transform of length N, half of it a real one.
    recurrence: one token takes 24 a conjugate couple (fade z 6, Re(row z) 4, column times it 2, B u 2, their sum 6,
    Re(C z) 4) and 2 for D u. More tokens take none.
    Not counted: forming the discrete system, products of spectra, gathers; O(d (n + t)).
    """
    if t == 1:
        return 0, d * (12 * n + 2), 0.0
    blocks = Blocks.of(t, LOG_BLOCK)
    matmul = kernel_products(n, blocks) + (state_products(n, t, blocks) if state else 0)
    return 2 * d * matmul, 0, d * (3 * real_fft(fft_length(2 * t - 1)) + blocks.count * real_fft(blocks.size))


def kernel_products(n: int, blocks: Blocks) -> int:
    """Multiplications a channel: powers of Abar, rows of C by doubling, C (I - Abar^size), Cauchy sums."""
    rows = (1 << blocks.log_count) - 1 + blocks.count
    return (blocks.levels - 1) * n**3 + rows * n**2 + (blocks.count + 1) * n * 4 * (blocks.size // 2 + 1)


def state_products(n: int, t: int, blocks: Blocks) -> int:
    """Multiplications a channel: response, forced state, free state."""
    levels, padded = (t - 1).bit_length() + 1, 1 << blocks.log_count
    response = (blocks.size + padded - 1) * n**2 + blocks.count * blocks.size * n
    forced = (blocks.size - 1 + padded - 1) * n**2 + padded * blocks.size * n
    return (levels - blocks.levels) * n**3 + response + forced + levels * n**2


def real_fft(n: int) -> float:
    """FLOPs of a real transform of length n."""
    return 2.5 * n * log2(n)
