"""What oracles of state spaces share: matrices of all states, and their exponential."""

import math

import torch


def full(z):
    """Both of each couple."""
    return torch.cat([z, z.conj()])


def expm(M):
    """e^M by scaling, Taylor's series and squaring. (torch's is right to 1e-10 only for small complex matrices.)"""
    halvings = max(0, math.ceil(math.log2(M.abs().sum(0).max().item() + 1e-300)) + 1)
    term = total = torch.eye(len(M), dtype=M.dtype)
    for k in range(1, 20):
        term = term @ M / 2**halvings / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total
