"""Attention by a diagonal state space, all chunks of some heads at once, and the gradients by hand.

k v^T and the states of all chunks are p and p N / c times as large as v. They are computed again for the backward pass
instead of being kept, for as many heads at a time as make temporaries of BYTES: on a CPU they stay in its cache.

Letters: a and e channels of a key and of a value, both p; z chunks, c places of a chunk; n couples, N = 2 n.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlm.ops.chunks import pass_on
from hybridlm.ops.lti import conjugate
from hybridlm.recording import symbolic

BYTES = 2**27  # of a temporary
BYTES_OF_CPU = 2**20


class ByChunk(torch.autograd.Function):
    """q, k, v (h, p, b, z, c); within (h, c, c), write (h, c, N), read (h, N, c), through (h, n, 2): see `Tables`;
    H (h, p, p, b, n, 2), before the first chunk; ends (b), full chunks of each row; keep (b, z), which let H through.

    None: within, chunks do not look into themselves; H, zero, and no ends; keep, all. Returns y as v, and H after
    `ends` chunks (nothing where it began as None).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q, k, v, within, write, read, through, H, ends, keep) -> tuple[Tensor, Tensor]:
        found = []
        for heads in _parts(q, k, v, within, write, read, through, H):
            kv = _products(heads.k, heads.v)
            states = _states(heads, kv, keep)
            y = (heads.q[:, :, None] * _outputs(heads, kv, states)).sum(1)
            found.append((y, v.new_zeros(0) if H is None else _at(states, ends)))
        return tuple(_joined(pieces) for pieces in zip(*found, strict=True))

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor, dend: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, ends, keep = ctx.saved_tensors
        found, first = [], 0
        for heads in _parts(*inputs):
            part = slice(first, first := first + heads.v.shape[0])
            found.append(_gradients(heads, ends, keep, dy[part], None if heads.H is None else dend[part]))
        return *(_joined(pieces) for pieces in zip(*found, strict=True)), None, None


class Heads(NamedTuple):
    """Some of the heads: the first inputs of `ByChunk`."""

    q: Tensor
    k: Tensor
    v: Tensor
    within: Tensor | None
    write: Tensor
    read: Tensor
    through: Tensor
    H: Tensor | None


class States(NamedTuple):
    """before: of each chunk, (h, a, e, b, z, n) complex. after: the last one, (h, a, e, b, n). decay: of each chunk,
    (h, 1, 1, b or 1, z, n)."""

    before: Tensor
    after: Tensor
    decay: Tensor


def _parts(*inputs: Tensor | None) -> Iterator[Heads]:
    """As many heads at a time as BYTES allow; all where they are compiled, as no loop is wanted in what comes out."""
    v, write = inputs[2], inputs[4]
    h, p, b, z, c = v.shape
    size = h
    if not (torch.compiler.is_compiling() or symbolic(b)):
        of_one = p * p * b * z * max(c, write.shape[-1]) * v.dtype.itemsize
        most = max(1, (BYTES if v.is_cuda else BYTES_OF_CPU) // of_one)
        size = -(-h // -(-h // most))
    for first in range(0, h, size):
        yield Heads(*(x if x is None else x[first : first + size] for x in inputs))


def _joined(pieces: tuple[Tensor | None, ...]) -> Tensor | None:
    return pieces[0] if len(pieces) == 1 or pieces[0] is None else torch.cat(pieces)


def _products(k: Tensor, v: Tensor) -> Tensor:
    """Of every channel of one with every channel of the other, (h, a, e, b, z, c)."""
    return k[:, :, None] * v[:, None]


def _rows(x: Tensor) -> Tensor:
    """(h, a, e, b, z, m), or complex numbers of half as many -> matrices (h, a e b z, m)."""
    x = torch.view_as_real(x).flatten(-2) if x.is_complex() else x
    return x.flatten(1, 4)


def _couples(rows: Tensor, like: Tensor) -> Tensor:
    """Matrices (h, a e b z, N) -> complex (h, a, e, b, z, n), where like is (h, a, e, b, z, c)."""
    return torch.view_as_complex(rows.reshape(*like.shape[:-1], -1, 2))


def _states(heads: Heads, kv: Tensor, keep: Tensor | None) -> States | None:
    """None: there is one chunk, and nothing comes from before it."""
    if heads.H is None and heads.within is not None and kv.shape[4] == 1:
        return None
    added = _couples(_rows(kv) @ heads.write, kv)
    decay = torch.view_as_complex(heads.through)[:, None, None, None, None]
    decay = decay if keep is None else decay * keep[..., None]
    decay = decay.expand(-1, -1, -1, -1, kv.shape[4], -1)
    H = torch.zeros_like(added[..., 0, :]) if heads.H is None else torch.view_as_complex(heads.H.contiguous())
    return States(*pass_on(H, decay, added, dim=4), decay)


def _outputs(heads: Heads, kv: Tensor, states: States | None) -> Tensor:
    """C H + D k v^T at every place, (h, a, e, b, z, c): by the matrix K_{i-j} inside, and from the states before."""
    if states is None:
        y = _rows(kv) @ heads.within
    elif heads.within is None:
        y = _rows(states.before) @ heads.read
    else:
        y = torch.baddbmm(_rows(kv) @ heads.within, _rows(states.before), heads.read)
    return y.reshape(kv.shape)


def _at(states: States, ends: Tensor) -> Tensor:
    """Each row's state after `ends` chunks, as pairs (h, a, e, b, n, 2)."""
    z = states.before.shape[4]
    inner = states.before[:, :, :, torch.arange(ends.shape[0], device=ends.device), ends.clamp(max=z - 1)]
    return torch.view_as_real(torch.where((ends == z)[:, None], states.after, inner))


def _gradients(
    heads: Heads, ends: Tensor | None, keep: Tensor | None, dy: Tensor, dend: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of the heads' q, k, v, within, write, read, through and H."""
    q, k, v, within, write, read, *_ = heads
    kv = _products(k, v)
    states = _states(heads, kv, keep)
    dq = (dy[:, None] * _outputs(heads, kv, states)).sum(2)
    u, dY = _rows(kv), _rows(_products(q, dy))
    dwithin = None if within is None else u.mT @ dY
    dread, dwrite, dthrough, dH = torch.zeros_like(read), torch.zeros_like(write), torch.zeros_like(heads.through), None
    du = 0 if within is None else dY @ within.mT
    if states is not None:
        before = _rows(states.before)
        dadded, dH = _pass_back(states, heads, ends, _couples(dY @ read.mT, kv), dend)
        dread, dwrite, du = before.mT @ dY, u.mT @ _rows(dadded), du + _rows(dadded) @ write.mT
        passed = dadded if keep is None else torch.where(keep[..., None], dadded, 0)
        dthrough = _by_couples(before.mT @ _rows(passed))
    dkv = du.reshape(kv.shape)
    dk, dv = (dkv * v[:, None]).sum(2), (dkv * k[:, :, None]).sum(1)
    return dq, dk, dv, dwithin, dwrite, dread, dthrough, dH


def _pass_back(
    states: States, heads: Heads, ends: Tensor | None, dbefore: Tensor, dend: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the states before each chunk, and of those returned -> of what each chunk added, and of H."""
    last = torch.zeros_like(states.after)
    if heads.H is not None:
        here = torch.arange(dbefore.shape[4] + 1, device=ends.device) == ends[:, None]
        dend = torch.view_as_complex(dend.contiguous())
        dbefore = dbefore + torch.where(here[:, :-1, None], dend[..., None, :], 0)
        last = torch.where(here[:, -1:], dend, 0)
    dadded, dH = pass_on(last, conjugate(states.decay), dbefore, back=True, dim=4)
    return dadded, None if heads.H is None else torch.view_as_real(dH)


def _by_couples(x: Tensor) -> Tensor:
    """The sum of conj(z) w for each couple, as pairs (h, n, 2), where x (h, N, N) sums products of coordinates."""
    pair = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).diagonal(dim1=1, dim2=3)
    return torch.stack([pair[:, 0, 0] + pair[:, 1, 1], pair[:, 0, 1] - pair[:, 1, 0]], dim=-1)
