"""Linear attention chunk by chunk, forward and backward by hand: what a CPU runs.

The formulas are those of the reference. All of a chunk stays in the processor's cache, and the backward pass computes
scores and masks again instead of keeping them: nothing of size t c is held, only the state before each chunk.

Letters: as in the reference; X_ij is the loss's gradient by the logarithm of what is left from place j to place i.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from hybridlm.ops.by_hand import by_formula
from hybridlm.ops.chunks import Decays, decays


class ByChunk(torch.autograd.Function):
    """q, k (b, z, c, g, n), v (b, z, c, g, r, p), decay (b, z, c, g, r), S (b, g, r, p, n) -> y as v, the last S.

    formula: a function of the same tensors that gives the same.
    """

    @staticmethod
    def forward(
        ctx, formula: Callable, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        ys, before = [], []
        for part in zip(*(x.unbind(1) for x in (q, k, v, decay)), strict=True):
            before.append(S)
            y, S = _forward(*part, S)
            ys.append(y)
        ctx.formula = formula
        ctx.save_for_backward(q, k, v, decay, *before)
        return torch.stack(ys, dim=1), S.clone() if S is before[0] else S

    @staticmethod
    def backward(ctx, dy: Tensor, dS: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, *before = ctx.saved_tensors  # read once: a checkpoint's cannot be read again
        inputs = (q, k, v, decay)
        if torch.is_grad_enabled():
            return None, *by_formula(ctx.formula, (*inputs, before[0]), (dy, dS))
        parts, found = list(zip(*(x.unbind(1) for x in inputs), strict=True)), []
        for z in reversed(range(len(parts))):
            *gradients, dS = _backward(*parts[z], before[z], dy[:, z], dS)
            found.append(gradients)
        return None, *(torch.stack(each, dim=1) for each in zip(*reversed(found), strict=True)), dS


def _left(decay: Tensor) -> tuple[Decays, Tensor, Tensor]:
    """What is left of a state, and of it since_start and until_end as (b, c, g, r, 1)."""
    left = decays(rearrange(decay, "b j g r -> b g r j"))
    return left, *(rearrange(x, "b g r j -> b j g r 1") for x in (left.since_start, left.until_end))


def _rows(v: Tensor) -> Tensor:
    """(b, c, g, ...) -> (b, g, c, ...) with the rest as one: matrices whose products need no copies."""
    return v.flatten(3).transpose(1, 2)


def _heads(v: Tensor) -> Tensor:
    """(b, c, g, r, p) -> (b, g, r, c, p), in one piece."""
    return v.permute(0, 2, 3, 1, 4).contiguous()


def _places(rows: Tensor, v: Tensor) -> Tensor:
    """(b, g, c, r p) -> as v, (b, c, g, r, p)."""
    return rows.transpose(1, 2).unflatten(3, v.shape[3:])


def _forward(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """y of one chunk, and the state after it."""
    left, since_start, until_end = _left(decay)
    queries, keys = _rows(q), _rows(k)
    inside = ((queries @ keys.mT).unsqueeze(2) * left.within) @ _heads(v)
    y = _places(queries @ S.flatten(2, 3).mT, v).mul(since_start).add_(inside.permute(0, 3, 1, 2, 4))
    added = (_rows(v * until_end).mT @ keys).view(S.shape)
    return y, torch.addcmul(added, left.through[..., None, None], S)


def _backward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor, dy: Tensor, dS: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a chunk's q, k, v and decay, and of the state before it."""
    left, since_start, until_end = _left(decay)
    queries, keys, state, dstate = _rows(q), _rows(k), S.flatten(2, 3), dS.flatten(2, 3)
    scores = (queries @ keys.mT).unsqueeze(2)

    # Inside: y = W v with W = (q k^T) * L.
    dys = _heads(dy)
    dv = (scores * left.within).mT @ dys
    X = (dys @ _heads(v).mT).mul_(left.within)
    dscores = X.sum(2)
    X = X.mul_(scores)
    # From the state before: y += since_start * (q S).
    faded = dy * since_start
    dq = (dscores @ keys).add_(_rows(faded) @ state)
    read = _places(queries @ state.mT, v).mul(faded).sum(-1)
    # To the state after: through * S + (until_end * v) k^T.
    dkept = _places(keys @ dstate.mT, v) * until_end
    dk = (dscores.mT @ queries).add_(_rows(v * until_end) @ dstate)
    written = (dkept * v).sum(-1)
    passed = (dS * S).sum((-1, -2)) * left.through
    before = torch.addcmul((_rows(faded).mT @ queries).view(S.shape), left.through[..., None, None], dS)
    dv = dkept.add_(dv.permute(0, 3, 1, 2, 4))
    return dq.transpose(1, 2), dk.transpose(1, 2), dv, _by_decay(X, read, written, passed), before


def _by_decay(X: Tensor, read: Tensor, written: Tensor, passed: Tensor) -> Tensor:
    """Gradient of the decay at each place k, (b, c, g, r): it stands between j and i for all j < k <= i.

    X (b, g, r, i, j). read, written (b, c, g, r): the same of what comes from the state before, and goes to the one
    after, by place; passed (b, g, r): of what goes through. Sums of what counts, never differences of longer ones.
    """
    c = X.shape[-1]
    earlier = torch.ones(c, c, dtype=X.dtype, device=X.device).triu(1)  # [j, k]: j < k
    inside = (X @ earlier).mul_(earlier.mT + torch.eye(c, dtype=X.dtype, device=X.device)).sum(-2)
    places = rearrange(read, "b i g r -> b g r i").flip(-1).cumsum(-1).flip(-1)
    places = places + rearrange(written, "b j g r -> b g r j") @ earlier + inside + passed[..., None]
    return rearrange(places, "b g r k -> b k g r")
