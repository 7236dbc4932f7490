"""The generalised delta rule in plain PyTorch, many tokens at a time (the WY form of Yang et al. 2024, section 3.2).

What the state answers to a_i is u_i = S_{i-1} a_i. Inside a chunk that is a sum over the v_j and u_j of earlier places
and over the state S at its start: U = A_ak V + A_ab U + (a's since the start) S^T, a triangular system for U. With U
known the rule is linear attention with two kinds of keys, k writing V and b writing U. Between chunks only S travels.

Letters: z chunks, i and j places in a chunk (a query's and a key's), c places of a chunk.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from hybridlm.ops.chunks import at_begins, fold, forget_between
from hybridlm.ops.linear_attention.channel import whole


def generalized_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor,
    state: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k, u, a, b, decay = (x.to(wide) for x in (q, k, v, a, b, decay))
    S = u.new_zeros(u.shape[0], *u.shape[2:], q.shape[-1]) if state is None else state.to(wide)
    decay, a = forget_between(decay, document), at_begins(a, document, 0.0)  # what begins asks nothing of what was
    step = _step if u.shape[1] == 1 else _chunked
    y, S = step(q, k, u, a, b, decay, S, chunk)
    return y.to(v.dtype), S


def _step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    q, k, v, a, b, decay = (x[:, 0] for x in (q, k, v, a, b, decay))
    u = einsum(S, a, "b h p n, b h n -> b h p")
    S = torch.addcmul(torch.exp(decay)[..., None, :] * S, v[..., None], k[..., None, :])
    S = torch.addcmul(S, u[..., None], b[..., None, :])
    return einsum(S, q, "b h p n, b h n -> b h p").unsqueeze(1), S


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Many tokens. Zeros, which hold S, fill up the last chunk."""
    t, size = v.shape[1], whole(min(chunk, v.shape[1]))
    q, k, v, a, b, decay = (rearrange(fold(x, size), "b z c h n -> b z h c n") for x in (q, k, v, a, b, decay))
    ((ak, ab), (qk, qb)), since, until = _meet(torch.stack([a, q]), torch.stack([k, b]), decay)
    since, until, before = since.exp(), until.exp(), _shifted(since).exp()

    # U = written + seen S^T, with S at the start of the chunk.
    right = torch.cat([ak @ v, a * before], dim=-1)
    solved = torch.linalg.solve_triangular(-ab, right, upper=False, unitriangular=True)
    written, seen = solved.split([v.shape[-1], a.shape[-1]], dim=-1)
    # From chunk to chunk, and what is read.
    U, starts, S = _pass_on(S, since[..., -1:, :], v.mT @ (k * until), b * until, written, seen)
    y = qk @ v + qb @ U + (q * since) @ starts.mT
    return rearrange(y, "b z h c p -> b (z c) h p")[:, :t], S


def _shifted(since: Tensor) -> Tensor:
    """Sums up to each place (..., c, n) -> up to the one before it."""
    return F.pad(since[..., :-1, :], (0, 0, 1, 0))


def _meet(asking: Tensor, keys: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of places i and j of every chunk: asking [a, q] and keys [k, b], (2, ..., c, n), decay (..., c, n).

    a_i sees what is left of j before i, sum_n a_in k_jn exp(decay_{j+1,n} + ... + decay_{i-1,n}) for j < i; q_i after
    it, up to decay_in and j = i. As in linear_attention/channel.py a chunk is cut in half again and again, so that
    every decay is exp of a sum of its own, and none is divided by.
    Returns scores (2, 2, ..., i, j), and the sums of decays since the start and until the end, (..., c, n).
    """
    c = decay.shape[-2]
    if c == 1:
        now = (asking[1] * keys).sum(-1, keepdim=True)  # of q: a asks before k and b are written
        return torch.stack([torch.zeros_like(now), now]), decay, torch.zeros_like(decay)
    halves, keys, decay = (rearrange(x, "... (two c) n -> two ... c n", two=2) for x in (asking, keys, decay))
    scores, since, until = _meet(*(x.transpose(0, 1) for x in (halves, keys)), decay)
    first, second = scores.unbind(2)

    left = torch.stack([_shifted(since[1]), since[1]]).exp()  # of a state at the cut, before i and after it
    corner = einsum(halves[1] * left, keys[0] * until[0].exp(), "a ... i n, k ... j n -> a k ... i j")
    scores = torch.cat([F.pad(first, (0, c // 2)), torch.cat([corner, second], dim=-1)], dim=-2)
    since_start = torch.cat([since[0], since[0][..., -1:, :] + since[1]], dim=-2)
    until_end = torch.cat([until[0] + since[1][..., -1:, :], until[1]], dim=-2)
    return scores, since_start, until_end


def _pass_on(
    S: Tensor, through: Tensor, added: Tensor, b: Tensor, written: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From chunk to chunk, each (b, z, h, ...): U (b, z, h, c, p), S before each chunk, and S after the last."""
    starts, answers = [], []
    for decay, more, keys, fixed, asks in zip(*(x.unbind(1) for x in (through, added, b, written, seen)), strict=True):
        U = fixed + asks @ S.mT
        starts.append(S)
        answers.append(U)
        S = decay * S + more + U.mT @ keys
    return torch.stack(answers, dim=1), torch.stack(starts, dim=1), S


def generalized_delta_rule_flops(t: int, h: int, p: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials are not counted.

    matrix products: 2 m n k each; below the cuts of a chunk lie c (c - 1) / 2 places for each of 4 scores. One token:
    what answers and what is read, 4 p n a head.
    recurrence: one token takes 5 p n (fade, two writes) a head. Of more, each takes 3 n (decays of what asks and of the
    keys, in the half that needs them; sums) a cut, 4 n (q k, q b), 4 n (decays to the chunk's ends), (c - 1) (p + n)
    (substitution) and 3 p (sums), each chunk 3 p n (pass on) a head.
    """
    if t == 1:
        return 4 * h * p * n, 5 * h * p * n
    c = whole(min(chunk, t))
    z, cuts = -(-t // c), c.bit_length() - 1
    products = 4 * n * c * (c - 1) + 6 * c * c * p + 8 * c * p * n
    return z * h * products, z * h * (c * ((3 * cuts + 8) * n + (c - 1) * (p + n) + 3 * p) + 3 * p * n)
