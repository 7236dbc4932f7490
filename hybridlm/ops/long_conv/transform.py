"""Causal convolution of whole rows by real FFTs, and its gradients."""

import torch
from torch import Tensor

from hybridlm.ops.chunks import bits


def convolve(u: Tensor, k: Tensor) -> Tensor:
    """u (b, d, t), k (d, t) of one dtype -> (b, d, t): a linear convolution, as a circular one of zero-padded rows."""
    t = u.shape[-1]
    n = fft_length(2 * t - 1)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :t]


def pull_back(u: Tensor, k: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """du (b, d, t) and dk (d, t): correlations, by real FFTs too, where autograd's rule for rfft takes complex ones."""
    t = dy.shape[-1]
    n = fft_length(2 * t - 1)
    dY = torch.fft.rfft(dy, n=n)
    dk = torch.fft.irfft((dY * torch.fft.rfft(u, n=n).conj()).sum(dim=0), n=n)[..., :t]
    return torch.fft.irfft(dY * torch.fft.rfft(k, n=n).conj(), n=n)[..., :t], dk


def fft_length(least: int) -> int:
    """The smallest 2^i or 3 2^i that is at least `least`: no wrap-around, and no large prime factor."""
    return min(odd << bits(-(-least // odd) - 1) for odd in (1, 3))
