"""Long convolution by FFT: as many channels at a time as make temporaries of BYTES, every one of them by itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridlm.ops.long_conv import documents, transform
from hybridlm.ops.long_conv.transform import fft_length
from hybridlm.recording import symbolic

BYTES = 2**27  # of a temporary: a spectrum, or as many zero-padded rows


def long_conv(u: Tensor, k: Tensor, D: Tensor | None, document: Tensor | None) -> Tensor:
    """u (b, t, d), k (d, l), D (d), document (b, t) -> (b, t, d) in u's dtype, computed in float32 at least."""
    if document is not None and not (u.is_cuda or torch.compiler.is_compiling()):
        dtype = torch.promote_types(torch.float32, u.dtype)
        x, k = u.to(dtype), k.to(dtype)
        y = documents.in_rows(convolve, x, k, document)
        return (y if D is None else y + D.to(dtype) * x).to(u.dtype)
    return LongConv.apply(u, k[:, : u.shape[1]], D, document)


def convolve(u: Tensor, k: Tensor) -> Tensor:
    """Causal y_t = sum_{i <= t} k_i u_{t-i}: u (b, t, d), k (d, l), one dtype, l >= t -> (b, t, d)."""
    return LongConv.apply(u, k[:, : u.shape[1]], None, None)


class LongConv(torch.autograd.Function):
    """The op itself. Its inputs are kept, in their own dtypes, and transformed once more for the gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, k: Tensor, D: Tensor | None, document: Tensor | None) -> Tensor:
        ys = []
        for part, x, taps in _parts(u, k):
            y = _convolve(x.mT, taps, document).mT
            ys.append(_rounded(y if D is None else y + D[part].to(x.dtype) * x, u.dtype))
        return ys[0] if len(ys) == 1 else torch.cat(ys, dim=-1)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, k, D, document = ctx.saved_tensors
        found = []
        for part, x, taps in _parts(u, k):
            g = dy[..., part].to(x.dtype)
            du, dk = _pull_back(x.mT, taps, g.mT, document)
            du = du.mT if D is None else du.mT + D[part].to(x.dtype) * g
            dD = k.new_zeros(0) if D is None else (g * x).sum(dim=(0, 1)).to(D.dtype)
            found.append((du.to(u.dtype), dk.to(k.dtype), dD))
        du, dk, dD = (_joined(piece, dim) for piece, dim in zip(zip(*found, strict=True), (-1, 0, 0), strict=True))
        return du, dk, None if D is None else dD, None


def _rounded(y: Tensor, dtype: torch.dtype) -> Tensor:
    """y.to(dtype), left out where it would do nothing: PyTorch 2.11 compiles a Function with all it computes on the way
    as outputs too, and of a tensor that is there twice only the last has a gradient."""
    return y if y.dtype == dtype else y.to(dtype)


def _joined(pieces: tuple[Tensor, ...], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


def _convolve(u: Tensor, k: Tensor, document: Tensor | None) -> Tensor:
    return transform.convolve(u, k) if document is None else documents.convolve(u, k, document)


def _pull_back(u: Tensor, k: Tensor, dy: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor]:
    return transform.pull_back(u, k, dy) if document is None else documents.pull_back(u, k, dy, document)


def _parts(u: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(channels, u and k of these in the dtype of the computation), as many at a time as BYTES allow."""
    b, t, d = u.shape
    dtype = torch.promote_types(torch.float32, u.dtype)
    most = d if symbolic(b) else max(1, BYTES // (b * fft_length(2 * t - 1) * dtype.itemsize))
    size = -(-d // -(-d // most))
    for first in range(0, d, size):
        part = slice(first, min(first + size, d))
        yield part, u[..., part].to(dtype), k[part].to(dtype)
