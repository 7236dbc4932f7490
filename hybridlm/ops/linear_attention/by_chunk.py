"""Linear attention with the backward pass by hand: what a CPU runs, chunk by chunk, or compiled all chunks at once.

The formulas are those of the reference. The backward pass computes scores and masks again instead of keeping them:
nothing of size t c is held, only the state before each chunk. Chunk by chunk all of a chunk stays in the processor's
cache; at once there are few large steps, which torch.compile fuses.

Letters: as in the reference; X_ij is the loss's gradient by the logarithm of what is left from place j to place i.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from hybridlm.ops.by_hand import by_formula
from hybridlm.ops.chunks import decays_by_hand, pass_on


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
            chunk = Chunk.of(*part)
            before.append(S)
            ys.append(_read(chunk, S))
            S = torch.addcmul(_added(chunk), chunk.through, S)
        ctx.formula = formula
        ctx.save_for_backward(q, k, v, decay, *before)
        return torch.stack(ys, dim=1), S

    @staticmethod
    def backward(ctx, dy: Tensor, dS: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, *before = ctx.saved_tensors  # read once: a checkpoint's cannot be read again
        inputs = (q, k, v, decay)
        if torch.is_grad_enabled():
            return None, *by_formula(ctx.formula, (*inputs, before[0]), (dy, dS))
        parts, found = list(zip(*(x.unbind(1) for x in inputs), strict=True)), []
        for z in reversed(range(len(parts))):
            chunk = Chunk.of(*parts[z])
            faded = dy[:, z] * chunk.since_start
            found.append(_gradients(chunk, before[z], dy[:, z], faded, dS))
            dS = torch.addcmul(_added_back(chunk, faded), chunk.through, dS)
        return None, *(torch.stack(each, dim=1) for each in zip(*reversed(found), strict=True)), dS


class AtOnce(torch.autograd.Function):
    """The same for torch.compile: every chunk is a row of its own, but for the states that are passed on."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        z, chunk = v.shape[1], Chunk.of(*(x.flatten(0, 1) for x in (q, k, v, decay)))
        before, S = pass_on(S, _apart(chunk.through, z), _apart(_added(chunk), z))
        ctx.save_for_backward(q, k, v, decay, before)
        return _apart(_read(chunk, before.flatten(0, 1)), z), S

    @staticmethod
    def backward(ctx, dy: Tensor, dS: Tensor) -> tuple[Tensor, ...]:
        q, k, v, decay, before = ctx.saved_tensors
        z, chunk = v.shape[1], Chunk.of(*(x.flatten(0, 1) for x in (q, k, v, decay)))
        dy = dy.flatten(0, 1)
        faded = dy * chunk.since_start
        after, dS = pass_on(dS, _apart(chunk.through, z), _apart(_added_back(chunk, faded), z), back=True)
        found = _gradients(chunk, before.flatten(0, 1), dy, faded, after.flatten(0, 1))
        return *(_apart(x, z) for x in found), dS


def _apart(x: Tensor, z: int) -> Tensor:
    """(b z, ...) -> (b, z, ...)."""
    return x.unflatten(0, (-1, z))


class Chunk(NamedTuple):
    """A chunk, and what is left of a state in it: within (b, g, r, i, j); since_start, until_end as (b, c, g, r, 1);
    through (b, g, r, 1, 1)."""

    q: Tensor
    k: Tensor
    v: Tensor
    within: Tensor
    since_start: Tensor
    until_end: Tensor
    through: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> "Chunk":
        """q, k (b, c, g, n), v (b, c, g, r, p), decay (b, c, g, r)."""
        left = decays_by_hand(rearrange(decay, "b j g r -> b g r j"))
        ends = (rearrange(x, "b g r j -> b j g r 1") for x in (left.since_start, left.until_end))
        return cls(q, k, v, left.within, *ends, left.through[..., None, None])


def _rows(v: Tensor) -> Tensor:
    """(b, c, g, ...) -> (b, g, c, ...) with the rest as one: matrices whose products need no copies."""
    return v.flatten(3).transpose(1, 2)


def _heads(v: Tensor) -> Tensor:
    """(b, c, g, r, p) -> (b, g, r, c, p), in one piece."""
    return v.permute(0, 2, 3, 1, 4).contiguous()


def _places(rows: Tensor, v: Tensor) -> Tensor:
    """(b, g, c, r p) -> as v, (b, c, g, r, p)."""
    return rows.transpose(1, 2).unflatten(3, v.shape[3:])


def _added(chunk: Chunk) -> Tensor:
    """What a chunk adds to the state, (b, g, r, p, n): (until_end * v) k^T."""
    return (_rows(chunk.v * chunk.until_end).mT @ _rows(chunk.k)).unflatten(2, chunk.v.shape[3:])


def _read(chunk: Chunk, S: Tensor) -> Tensor:
    """y of a chunk, from inside and from the state S before it."""
    q, k, v, within, since_start, *_ = chunk
    queries = _rows(q)
    inside = ((queries @ _rows(k).mT).unsqueeze(2) * within) @ _heads(v)
    return _places(queries @ S.flatten(2, 3).mT, v).mul(since_start).add_(inside.permute(0, 3, 1, 2, 4))


def _added_back(chunk: Chunk, faded: Tensor) -> Tensor:
    """What a chunk's y adds to the gradient of the state before it: (since_start * dy) q^T. faded: since_start * dy."""
    return (_rows(faded).mT @ _rows(chunk.q)).unflatten(2, faded.shape[3:])


def _gradients(chunk: Chunk, S: Tensor, dy: Tensor, faded: Tensor, dS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a chunk's q, k, v and decay. S: the state before it; dS: the gradient of the one after; faded: as above."""
    q, k, v, within, _, until_end, through = chunk
    queries, keys, state, dstate = _rows(q), _rows(k), S.flatten(2, 3), dS.flatten(2, 3)
    scores = (queries @ keys.mT).unsqueeze(2)

    # Inside: y = W v with W = (q k^T) * L.
    dys = _heads(dy)
    dv = (scores * within).mT @ dys
    X = (dys @ _heads(v).mT).mul_(within)
    dscores = X.sum(2)
    X = X.mul_(scores)
    # From the state before: y += since_start * (q S).
    dq = (dscores @ keys).add_(_rows(faded) @ state)
    read = _places(queries @ state.mT, v).mul(faded).sum(-1)
    # To the state after: through * S + (until_end * v) k^T.
    dkept = _places(keys @ dstate.mT, v) * until_end
    dk = (dscores.mT @ queries).add_(_rows(v * until_end) @ dstate)
    written = (dkept * v).sum(-1)
    passed = (dS * S).sum((-1, -2)) * through.flatten(2)
    dv = dkept.add_(dv.permute(0, 3, 1, 2, 4))
    return dq.transpose(1, 2), dk.transpose(1, 2), dv, _by_decay(X, read, written, passed)


def _by_decay(X: Tensor, read: Tensor, written: Tensor, passed: Tensor) -> Tensor:
    """Gradient of the decay at each place k, (b, c, g, r): it stands between j and i for all j < k <= i.

    X (b, g, r, i, j). read, written (b, c, g, r): the same of what comes from the state before, and goes to the one
    after, by place; passed (b, g, r): of what goes through. Sums of what counts, never differences of longer ones.
    """
    c = X.shape[-1]
    earlier = torch.ones(c, c, dtype=X.dtype, device=X.device).triu(1)  # [j, k]: j < k
    later = torch.ones(c, c, dtype=X.dtype, device=X.device).tril()  # [i, k]: k <= i
    inside = (X @ earlier).mul_(later).sum(-2)
    read, written = (rearrange(x, "b i g r -> b g r i") for x in (read, written))
    places = read @ later + written @ earlier + inside + passed[..., None]
    return rearrange(places, "b g r k -> b k g r")
