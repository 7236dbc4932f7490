"""S4's state space model in plain PyTorch: one step, the convolution kernel, and what an initial state adds.

Every channel has the continuous system x' = A x + B u, y = C x with A = diag(Lambda) - P P^*. Its N states are n = N/2
conjugate couples, of which one each is kept: a complex z (n), for which P^* x = 2 Re(P^* z) and C x = 2 Re(C z).
The bilinear rule with step dt turns it into x_k = Abar x_{k-1} + Bbar u_k:

    Abar = (I - dt/2 A)^-1 (I + dt/2 A)        Bbar = (I - dt/2 A)^-1 dt B

A map of z that commutes with conjugation is a real N x N matrix on coordinates (Re z_1, Im z_1, Re z_2, ...). Powers of
Abar are held as E_k = I - Abar^(2^k). Abar is a contraction (A + A^* < 0), so its powers need no diagonalisation.

Source: Gu, Goel, Re, Efficiently Modeling Long Sequences with Structured State Spaces (2021), section 3, appendix C.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from hybridlm.ops.chunks import bits
from hybridlm.ops.lti import Blocks, as_complex, conjugate, real_sum

LOG_BLOCK = 6  # the kernel is computed in blocks of up to 2^6 = N tokens, N the usual state size


class System(NamedTuple):
    """The continuous system of each channel: Lambda, P, B, C (d, n) complex128 and dt (d, 1) float64."""

    Lambda: Tensor
    P: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor

    @classmethod
    def of(cls, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> "System":
        """From real pairs (d, n, 2) and dt (d) of any dtype."""
        return cls(*(as_complex(x) for x in (Lambda, P, B, C)), dt.double()[:, None])

    def step(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token in O(N): z (b, d, n), u (b, d) -> y (b, d) and the next z."""
        return Bilinear.of(self).step(z, u)

    def over(self, t: int, handover: bool) -> "Stretch":
        """t tokens at once; handover: from a state to a state, which takes more powers of Abar."""
        blocks = Blocks.of(t, LOG_BLOCK)
        levels = bits(t - 1) + 1 if handover else blocks.levels
        return Stretch(self, Discrete.of(self, levels), blocks)


# ------------------------------------------------------------------------------------------------------------ one step
class Bilinear(NamedTuple):
    """The discrete system, diagonal plus low rank again: (I - Abar) z = fade z + column 2 Re(row z). All (d, n)."""

    fade: Tensor
    column: Tensor
    row: Tensor
    B: Tensor
    C: Tensor

    @classmethod
    def of(cls, s: System) -> "Bilinear":
        """(I - dt/2 A)^-1 by Woodbury; I - Abar = -dt A (I - dt/2 A)^-1 is formed without a difference from I."""
        inverse = 1 / (1 - s.dt / 2 * s.Lambda)
        row = inverse * conjugate(s.P)
        column = s.dt / (1 + s.dt / 2 * real_sum(row, s.P)) * inverse * s.P
        B = s.dt * (inverse * s.B - column / 2 * real_sum(row, s.B))
        return cls(-s.dt * s.Lambda * inverse, column, row, B, s.C)

    def step(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token: z (b, d, n), u (b, d) -> y (b, d) and the next z."""
        z = z - self.fade * z - self.column * real_sum(self.row, z) + self.B * u[..., None]
        return real_sum(self.C, z).squeeze(-1), z


# ------------------------------------------------------------------------------------------------------ powers of Abar
class Discrete(NamedTuple):
    """The same in real coordinates: Bbar (d, 1, N) and C (d, 1, N) as rows, E[k] = I - Abar^(2^k) (d, N, N)."""

    B: Tensor
    C: Tensor
    E: list[Tensor]

    @classmethod
    def of(cls, s: System, levels: int) -> "Discrete":
        """With the powers Abar^(2^k), k < levels."""
        system = Bilinear.of(s)
        low_rank = coordinates(system.column).mT * coordinates(2 * conjugate(system.row))
        E = [block_diagonal(system.fade) + low_rank]
        for _ in range(levels - 1):
            E.append(torch.baddbmm(E[-1], E[-1], E[-1], beta=2, alpha=-1))
        return cls(coordinates(system.B), coordinates(2 * conjugate(system.C)), E)


def block_diagonal(a: Tensor) -> Tensor:
    """Multiplication by a (d, n) complex, in real coordinates: (d, N, N), blocks [[re, -im], [im, re]]."""
    block = torch.stack([a.real, -a.imag, a.imag, a.real], dim=1)
    return rearrange(torch.diag_embed(block), "d (i j) n m -> d (n i) (m j)", i=2)


def coordinates(z: Tensor) -> Tensor:
    """z (d, n) complex -> (d, 1, N) real. Of 2 conj(C) this is the row that maps coordinates of z to 2 Re(C z)."""
    return torch.view_as_real(z).flatten(1)[:, None]


def orbit(rows: Tensor, powers: list[Tensor]) -> Tensor:
    """rows (d, r, N) -> (d, r 2^len(powers), N): rows M^i, i = 0, 1, ..., by doubling; powers: I - M^(2^k)."""
    for E in powers:
        rows = torch.cat([rows, torch.baddbmm(rows, rows, E, alpha=-1)], dim=1)
    return rows


def transposed(powers: list[Tensor]) -> list[Tensor]:
    """The same for states held as rows."""
    return [E.mT for E in powers]


# ---------------------------------------------------------------------------------------------------------- the kernel
def generating_function(s: System, rows: Tensor, zeta: Tensor) -> Tensor:
    """C~ (I - Abar zeta)^-1 Bbar at zeta (l) complex: rows C~ (d, j, N) -> (d, j, l) complex.

    Lemma C.3 has 2/(1+zeta) C~ (g - A)^-1 B with g = 2/dt (1-zeta)/(1+zeta), infinite at zeta = -1. Multiplied through
    it is dt C~ ((1-zeta) - (1+zeta) dt/2 A)^-1 B, which is finite everywhere.
    """
    half, behind, ahead = s.dt[..., None] / 2, 1 - zeta, 1 + zeta
    poles = half * s.Lambda[..., None]
    plus, minus = (1 / (behind - ahead * pole) for pole in (poles, conjugate(poles)))
    r = cauchy(torch.cat([rows, coordinates(2 * s.P)], dim=1), torch.stack([s.B, s.P], dim=2), plus, minus)
    (r00, r01), (r10, r11) = r[:, :-1].unbind(2), r[:, -1:].unbind(2)
    low_rank = half * ahead
    return 2 * half * (r00 - low_rank * r01 * r10 / (1 + low_rank * r11))


def cauchy(rows: Tensor, v: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """rows ((1-zeta) - (1+zeta) dt/2 Lambda)^-1 v, summed over both of each couple.

    rows (d, j, N) real coordinates; v (d, n, m) complex; plus, minus (d, n, l): the resolvent at Lambda and at its
    conjugate -> (d, j, m, l) complex. A real matrix product: real and imaginary parts of the right side stand in a row.
    """
    upper, lower = v[..., None] * plus[:, :, None], conjugate(v)[..., None] * minus[:, :, None]
    columns = torch.stack([(upper + lower) / 2, (upper - lower) / 2j], dim=2)
    columns = rearrange(torch.view_as_real(columns), "d n two m l ri -> d (n two) (m l ri)")
    product = rearrange(torch.bmm(rows, columns), "d j (m l ri) -> d j m l ri", m=v.shape[-1], ri=2)
    return torch.view_as_complex(product.contiguous())


def s4_kernel(s: System, length: int) -> Tensor:
    """The first `length` entries of the kernel: (d, length) float64."""
    return s.over(length, handover=False).kernel()[:, :length]


# -------------------------------------------------------------------------------------------------- many tokens at once
class Stretch(NamedTuple):
    """A system over many tokens. States h are (d, b, N) in real coordinates."""

    continuous: System
    discrete: Discrete
    blocks: Blocks

    def channels(self, part: slice) -> "Stretch":
        """Some of its channels."""
        B, C, E = self.discrete
        discrete = Discrete(B[part], C[part], [power[part] for power in E])
        return Stretch(System(*(v[part] for v in self.continuous)), discrete, self.blocks)

    def kernel(self) -> Tensor:
        """K_i = C Abar^i Bbar for all i: (d, count size) float64.

        Block j of K is the kernel of the same system with C_j = C Abar^(j size): all blocks share the Cauchy matrix of
        `size` points. These lie on a circle inside that of the roots of unity, of a radius r with r^size = 1/e, since
        the poles may come as near to that one as they like. There the spectrum is that of r^i K_i, and what truncates
        it is C~_j = C_j (I - (r Abar)^size).
        """
        C, E, blocks = self.discrete.C, self.discrete.E, self.blocks
        rows = orbit(C, blocks.across(E))[:, : blocks.count]
        rows = (1 - math.exp(-1)) * rows + math.exp(-1) * torch.bmm(rows, E[blocks.log_size])
        place = torch.arange(blocks.size, dtype=torch.float64, device=rows.device) / blocks.size
        angle = 2 * torch.pi * place[: blocks.size // 2 + 1]
        zeta = torch.polar(torch.full_like(angle, math.exp(-1 / blocks.size)), -angle)
        spectrum = generating_function(self.continuous, rows, zeta)
        return (torch.fft.irfft(spectrum, n=blocks.size) * place.exp()).flatten(1)

    def response(self, h: Tensor) -> Tensor:
        """What an initial state adds to the output: C Abar^(i+1) h for h (d, b, N) -> (b, count size, d)."""
        C, E, blocks = self.discrete.C, self.discrete.E, self.blocks
        rows = orbit(C, blocks.within(E))
        first = torch.baddbmm(h, h, E[0].mT, alpha=-1)
        starts = orbit(first, transposed(blocks.across(E)))
        starts = starts[:, : blocks.count * h.shape[1]]
        return rearrange(torch.bmm(starts, rows.mT), "d (j b) i -> b (j i) d", j=blocks.count)

    def forced(self, u: Tensor) -> Tensor:
        """The state that inputs alone leave: sum_i Abar^i Bbar u_{t-1-i} for u (b, t, d) -> (d, b, N).

        Each block's state by one matrix product; then neighbours are joined, Abar^size apart, until one is left.
        """
        E, blocks = transposed(self.discrete.E), self.blocks
        columns = orbit(self.discrete.B, blocks.within(E)).flip(1)
        u = torch.nn.functional.pad(u.double(), (0, 0, (blocks.size << blocks.log_count) - u.shape[1], 0))
        h = torch.bmm(rearrange(u, "b (j i) d -> d (j b) i", i=blocks.size), columns)
        for power in blocks.across(E):
            before, after = rearrange(h, "d (j two b) n -> two d (j b) n", two=2, b=u.shape[0])
            h = after + torch.baddbmm(before, before, power, alpha=-1)
        return h

    def free(self, lengths: Tensor, h: Tensor) -> Tensor:
        """Abar^length h for h (d, b, N), with a length for each row (b): its binary digits choose among the powers."""
        for level, E in enumerate(transposed(self.discrete.E)):
            digit = (lengths >> level & 1).bool()[None, :, None]
            h = torch.where(digit, torch.baddbmm(h, h, E, alpha=-1), h)
        return h
