"""Long convolution by FFT, and packed documents in rows of their own."""

import torch
from torch import Tensor


def long_conv(u: Tensor, k: Tensor, D: Tensor | None, document: Tensor | None) -> Tensor:
    """u (b, t, d), k (d, l), D (d), document (b, t) -> (b, t, d) in u's dtype, computed in float32 at least."""
    dtype = torch.promote_types(torch.float32, u.dtype)
    x, k = u.to(dtype), k.to(dtype)
    y = convolve(x, k) if document is None else convolve_documents(x, k, document)
    return (y if D is None else y + D.to(dtype) * x).to(u.dtype)


def convolve(u: Tensor, k: Tensor) -> Tensor:
    """Causal y_t = sum_{i <= t} k_i u_{t-i}: u (b, t, d), k (d, l), one dtype, l >= t -> (b, t, d)."""
    return Convolution.apply(u.mT, k[:, : u.shape[1]]).mT


class Convolution(torch.autograd.Function):
    """Linear convolution, as a circular one of zero-padded rows: u (b, d, t), k (d, t) -> (b, d, t).

    Its gradients are correlations, by real FFTs again: autograd's own formula for rfft takes complex ones, and keeps
    all spectra. Here the inputs are kept and transformed once more.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, k: Tensor) -> Tensor:
        t = u.shape[-1]
        n = fft_length(2 * t - 1)
        return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :t]

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        t = dy.shape[-1]
        n = fft_length(2 * t - 1)
        U, K, dY = (torch.fft.rfft(x, n=n) for x in (*ctx.saved_tensors, dy))
        du = torch.fft.irfft(dY * K.conj(), n=n)[..., :t]
        dk = torch.fft.irfft((dY * U.conj()).sum(dim=0), n=n)[..., :t]
        return du, dk


def fft_length(least: int) -> int:
    """The smallest 2^i or 3 2^i that is at least `least`: no wrap-around, and no large prime factor."""
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in (1, 3))


def convolve_documents(u: Tensor, k: Tensor, document: Tensor) -> Tensor:
    """`convolve` on every document of a packed batch apart. document (b, t): its number at each token.

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
        apart = convolve(torch.where(inside[..., None], flat[index], 0), k)
        y = y.index_put((index[inside],), apart[inside])
    return y.reshape(b, t, d)
