"""The gated delta rule in plain PyTorch, chunk by chunk: Yang et al. 2024, section 3 (WY form), with decays as in the
gated paper, section 3.3.

What a token writes is its value less what the state holds under its key by then, times beta: u_i. Within a chunk that
begins with S, and with what is left of a state from j to i as a mask L,

    u_i = beta_i (v_i - L_i S k_i - sum_{j < i} L_ij (k_i k_j) u_j),

a triangular system. Solved for V and for the keys at once, it gives u = u_V - W S^T for any S, so that only S travels
from chunk to chunk. The rest is linear attention of q and k with the values u.

Letters: z chunks, i and j places in a chunk (a later and an earlier one), g groups, r heads of a group.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor

from hybridlm.ops.chunks import Decays, decays, fold, forget_between


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    beta: Tensor,
    state: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide, g = torch.promote_types(v.dtype, torch.float32), q.shape[2]
    q, k, u, beta = (x.to(wide) for x in (q, k, v, beta))
    decay = torch.zeros_like(beta) if decay is None else decay.to(wide)
    S = u.new_zeros(u.shape[0], *u.shape[2:], q.shape[-1]) if state is None else state.to(wide)
    S = rearrange(S, "b (g r) p n -> b g r p n", g=g)
    u, beta, decay = (rearrange(x, "b t (g r) ... -> b t g r ...", g=g) for x in (u, beta, decay))
    decay = forget_between(decay, document)
    y, S = _step(q, k, u, decay, beta, S) if u.shape[1] == 1 else _chunked(q, k, u, decay, beta, S, chunk)
    y, S = rearrange(y, "b t g r p -> b t (g r) p"), rearrange(S, "b g r p n -> b (g r) p n")
    return y.to(v.dtype), S


def _step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    q, k, v, decay, beta = (x[:, 0] for x in (q, k, v, decay, beta))
    S = torch.exp(decay)[..., None, None] * S
    u = beta[..., None] * (v - einsum(S, k, "b g r p n, b g n -> b g r p"))
    S = torch.addcmul(S, u[..., None], k[:, :, None, None])
    return einsum(S, q, "b g r p n, b g n -> b g r p").unsqueeze(1), S


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Many tokens. The last chunk is filled up with zeros, which hold the state."""
    t = v.shape[1]
    q, k, v, decay, beta = (fold(x, min(chunk, t)) for x in (q, k, v, decay, beta))
    q, k = (rearrange(x, "b z c g n -> b z g c n") for x in (q, k))
    v, decay, beta = (rearrange(x, "b z c g r ... -> b z g r c ...") for x in (v, decay, beta))
    left = decays(decay)

    before, u, S = _write(k, *_solve(k, v, left, beta), left, S)
    scores = (q @ k.mT).unsqueeze(3) * left.within
    y = scores @ u + einsum(q, before, "b z g i n, b z g r p n -> b z g r i p") * left.since_start[..., None]
    return rearrange(y, "b z g r i p -> b (z i) g r p")[:, :t], S


def _solve(k: Tensor, v: Tensor, left: Decays, beta: Tensor) -> tuple[Tensor, Tensor]:
    """u_V (b, z, g, r, i, p), what a chunk that begins with S = 0 writes, and W (b, z, g, r, i, n)."""
    within = beta[..., None] * left.within * (k @ k.mT).unsqueeze(3)
    seen = left.since_start[..., None] * k.unsqueeze(3)
    sides = beta[..., None] * torch.cat([v, seen], dim=-1)
    solved = torch.linalg.solve_triangular(within, sides, upper=False, unitriangular=True)  # reads below the diagonal
    return solved.split([v.shape[-1], k.shape[-1]], dim=-1)


def _write(k: Tensor, u: Tensor, W: Tensor, left: Decays, S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From chunk to chunk: S before each (b, z, g, r, p, n), what each writes (b, z, g, r, i, p), and the last S."""
    before, written = [], []
    each = (u, W, k.unsqueeze(3), left.until_end[..., None], left.through[..., None, None])
    for u_V, W_i, k_i, until_end, through in zip(*(x.unbind(1) for x in each), strict=True):
        before.append(S)
        written.append(u_V - W_i @ S.mT)
        S = through * S + (written[-1] * until_end).mT @ k_i
    return torch.stack(before, dim=1), torch.stack(written, dim=1), S


def gated_delta_rule_flops(t: int, h: int, p: int, g: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials are not counted.

    matrix products: 2 m n k each, the last chunk filled up. One token: what the key and the query read, 4 p n a head.
    recurrence: one token takes 3 p n (fade, write, add) + 2 p (v less what is held, beta) a head. Of more, each takes
    c (p + n) (forward substitution, half of a matrix product) + 4 c (segment sums, masks, beta) + 5 p (beta, less W S,
    until_end, since_start, sum) + 2 n (since_start, beta) a head, each chunk 2 p n (pass on).
    """
    if t == 1:
        return 4 * h * p * n, h * (3 * p * n + 2 * p)
    c = min(chunk, t)
    z = -(-t // c)
    matmul = 2 * c * c * (2 * g * n + h * p) + 6 * c * h * p * n
    return z * matmul, z * h * (c * (c * (p + n) + 4 * c + 5 * p + 2 * n) + 2 * p * n)
