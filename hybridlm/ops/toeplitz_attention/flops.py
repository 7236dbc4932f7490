"""What attention by a diagonal state space costs: FLOPs of one row, counted by hand along the reference."""

from hybridlm.ops.chunks import pieces

NARROW = 4  # channels of a head from which on scores are fewer than entries of k v^T


def tokens_of(p: int) -> int:
    """Tokens of a chunk that are fastest for heads of p channels."""
    return 32 if p < NARROW else 64


def toeplitz_attention_flops(t: int, h: int, p: int, n: int, state: bool, chunk: int | None = None) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens, h heads of n = N states, without a state or from one.

    matrix products: 2 m n k each, the last chunk filled up: the kernel; inside chunks; into states and out of them,
    where there is more than one chunk or a state; and what is behind the last full chunk into the final state.
    recurrence: an entry of k v^T takes 3 a place (formed, times q, added) and 8 a chunk and couple (H passed on). One
    token: 16 a couple and 2 for D, as `diagonal_flops` has it, and these 3.
    Not counted: forming the discrete system, its powers.
    """
    if t == 1:
        return 0, h * p * p * (8 * n + 5)
    c = min(chunk or tokens_of(p), t)
    z = pieces(t, c)
    passed = state or z > 1
    products = 2 * z * c * c + 4 * z * c * n * passed + 2 * c * n * (state and z * c != t)
    return h * (2 * c * n + p * p * products), h * p * p * z * (3 * c + 4 * n * passed)
