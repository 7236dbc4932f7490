"""Long convolution inside the documents of packed rows.

On a CPU documents are gathered into rows of their own. That takes their number and lengths, for which a GPU would have
to be waited for and a compiler to stop; there, rows are halved instead, and their halves again: what a left half adds
to the right one passes through the one document that lies on both sides of the middle.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hybridlm.ops.chunks import bits

SHORT = 64  # tokens of a half, up to which a matrix product is faster than FFTs


def in_rows(run: Callable[[Tensor, Tensor], Tensor], u: Tensor, k: Tensor, document: Tensor) -> Tensor:
    """`run` on every document apart: u (b, t, d), k (d, l), document (b, t).

    Documents are gathered into rows, those of like length (up to a power of two) in one call, and put back.
    """
    b, t, d = u.shape
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    lengths = torch.diff(starts, append=starts.new_tensor([b * t]))
    flat, y = u.reshape(b * t, d), u.new_zeros(b * t, d)
    rows = torch.ceil(torch.log2(lengths.double())).long()
    for level in rows.unique().tolist():
        chosen = rows == level
        steps = torch.arange(min(2**level, t), device=u.device)
        inside = steps < lengths[chosen, None]
        index = torch.where(inside, starts[chosen, None] + steps, 0)
        apart = run(torch.where(inside[..., None], flat[index], 0), k)
        y = y.index_put((index[inside],), apart[inside])
    return y.reshape(b, t, d)


# --------------------------------------------------------------------------------------------------------------- halves
def convolve(u: Tensor, k: Tensor, document: Tensor) -> Tensor:
    """u (b, d, t), k (d, t), document (b, t) -> (b, d, t): lag 0, and what all left halves add to the right ones."""
    y = u * k[:, :1]
    for level in levels(document):
        y = y + right(level, across(lefts(level, u), lags(level, k)))
    return y


def pull_back(u: Tensor, k: Tensor, dy: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """du (b, d, t) and dk (d, t)."""
    t = k.shape[1]
    du, dk = dy * k[:, :1], F.pad((dy * u).sum(dim=(0, 2))[:, None], (0, t - 1))
    for level in levels(document):
        dv, dlags = pull_across(lefts(level, u), lags(level, k), rights(level, dy))
        du, dk = du + left(level, dv), dk + F.pad(dlags, (0, t - dlags.shape[1]))  # or cut
    return du, dk


class Level(NamedTuple):
    """Neighbours of `size` tokens each, and which of these are in the document of the middle: (b, 1, pairs, size)."""

    size: int
    t: int
    before: Tensor
    after: Tensor


def levels(document: Tensor) -> Iterator[Level]:
    """Halves of 1, 2, 4, ... tokens."""
    t = document.shape[1]
    for i in range(bits(t - 1)):
        halves = _halved(document, 1 << i, -1)[:, None]
        middle = halves[..., 0, -1:]
        yield Level(1 << i, t, halves[..., 0, :] == middle, halves[..., 1, :] == middle)


def lefts(level: Level, u: Tensor) -> Tensor:
    """u (b, d, t) -> its left halves, (b, d, pairs, size)."""
    return torch.where(level.before, _halved(u, level.size, 0)[..., 0, :], 0)


def rights(level: Level, u: Tensor) -> Tensor:
    """u (b, d, t) -> its right halves, (b, d, pairs, size)."""
    return torch.where(level.after, _halved(u, level.size, 0)[..., 1, :], 0)


def left(level: Level, v: Tensor) -> Tensor:
    """The other way: zeros in right halves."""
    row = F.pad(torch.where(level.before, v, 0), (0, level.size)).flatten(-2)
    return F.pad(row, (0, level.t - row.shape[-1]))


def right(level: Level, v: Tensor) -> Tensor:
    """The other way: zeros in left halves."""
    row = F.pad(torch.where(level.after, v, 0), (level.size, 0)).flatten(-2)
    return F.pad(row, (0, level.t - row.shape[-1]))


def lags(level: Level, k: Tensor) -> Tensor:
    """k (d, t) -> what takes a left half to the right one, (d, 2 size)."""
    return F.pad(k, (0, 2 * level.size - level.t))


def _halved(v: Tensor, size: int, fill: int) -> Tensor:
    """v (..., t) -> (..., pairs, 2, size), those pairs whose right half has a token; behind the last, `fill`."""
    pairs = -(-(v.shape[-1] - size) // (2 * size))
    v = F.pad(v, (0, 2 * size * pairs - v.shape[-1]), value=fill)
    return rearrange(v, "... (z two c) -> ... z two c", two=2, c=size)


# --------------------------------------------------------------------------------------- from left halves to right ones
def across(v: Tensor, lags: Tensor) -> Tensor:
    """Left halves v (b, d, pairs, size), lags (d, 2 size) -> what they add to the right ones.

    Where they are long by FFTs of twice the size: what these wrap around falls on the left half.
    """
    n = lags.shape[1]
    if n <= 2 * SHORT:
        return _channels_inside(torch.bmm(_channels_outside(v.flip(-1)), hankel(lags)), v)
    return torch.fft.irfft(torch.fft.rfft(v, n=n) * torch.fft.rfft(lags)[:, None], n=n)[..., n // 2 :]


def pull_across(v: Tensor, lags: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """g (b, d, pairs, size), the adjoint of what was added -> that of v, and that of the lags."""
    n = lags.shape[1]
    if n <= 2 * SHORT:
        rows = _channels_outside(g)
        dlags = unhankel(torch.bmm(_channels_outside(v.flip(-1)).mT, rows))
        return _channels_inside(torch.bmm(rows, hankel(lags).mT), v).flip(-1), dlags
    G = torch.fft.rfft(F.pad(g, (n // 2, 0)))
    dlags = torch.fft.irfft((G * torch.fft.rfft(v, n=n).conj()).sum(dim=(0, 2)), n=n)
    return torch.fft.irfft(G * torch.fft.rfft(lags)[:, None].conj(), n=n)[..., : n // 2], dlags


def hankel(lags: Tensor) -> Tensor:
    """lags (d, 2 size) -> H_ji = k_{1+i+j}, (d, size, size), where j counts from the middle to the left."""
    steps = torch.arange(lags.shape[1] // 2, device=lags.device)
    return lags[:, 1 + steps[:, None] + steps]


def unhankel(dH: Tensor) -> Tensor:
    """The adjoint: sums over i + j, every row put one place further to the right than the one above."""
    size = dH.shape[-1]
    skew = F.pad(dH, (0, size)).flatten(1)[:, : size * (2 * size - 1)]
    return F.pad(skew.unflatten(1, (size, 2 * size - 1)).sum(dim=1), (1, 0))


def _channels_outside(v: Tensor) -> Tensor:
    return rearrange(v, "b d z c -> d (b z) c")


def _channels_inside(v: Tensor, like: Tensor) -> Tensor:
    return rearrange(v, "d (b z) c -> b d z c", z=like.shape[2])
