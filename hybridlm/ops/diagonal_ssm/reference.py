"""Diagonal state space models in plain PyTorch: discretisation, one step, the kernel, and what a state adds.

Every channel has the continuous system x' = A x + B u, y = C x with A = diag(Lambda), N states as n = N/2 conjugate
couples. With E = 1 - Abar every power of Abar is a power of numbers, and the kernel a Vandermonde product:

    K_{jc+i} = 2 Re(sum_n (C Bbar Abar^(jc))_n (Abar^i)_n)      (j, n) x (n, i), two short orbits instead of t powers

Source: Gu, Gupta, Goel, Re, On the Parameterization and Initialization of Diagonal State Space Models (2022),
section 3.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hybridlm.ops.chunks import bits
from hybridlm.ops.lti import Blocks, as_complex, conjugate, real_sum


# ------------------------------------------------------------------------------------------------------ discretisation
def discretise(Lambda: Tensor, dt: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """E = 1 - Abar and s with Bbar = s B, of Lambda complex128 and dt float64 of one shape or broadcast.

    zoh: Abar = e^(dt Lambda), s = (Abar - 1) / Lambda. bilinear: (1 + dt/2 Lambda) s/dt, s = dt / (1 - dt/2 Lambda).
    """
    x = dt * Lambda
    if rule == "bilinear":
        inverse = 1 / (1 - x / 2)
        return -x * inverse, dt * inverse
    grown = expm1(x)
    small = x.abs() < 1e-3  # where (e^x - 1) / x is 0/0, or its gradient a difference of large numbers
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    ratio = torch.where(small, series, grown / torch.where(small, 1, x))
    return -grown, dt * ratio


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 of complex x, without the difference from 1: e^a cos b - 1 = expm1(a) cos b - 2 sin^2(b/2)."""
    a, b = x.real, x.imag
    return torch.complex(a.expm1() * b.cos() - 2 * (b / 2).sin().square(), a.exp() * b.sin())


def doubled(E: Tensor, levels: int) -> list[Tensor]:
    """E_k = 1 - Abar^(2^k), k < levels."""
    powers = [E]
    for _ in range(levels - 1):
        powers.append(powers[-1] * (2 - powers[-1]))
    return powers


# ----------------------------------------------------------------------------------------------------------- the system
class System(NamedTuple):
    """The discrete system of each channel: E = 1 - Abar, Bbar and C, (d, n) complex128."""

    E: Tensor
    B: Tensor
    C: Tensor

    @classmethod
    def of(cls, Lambda: Tensor, B: Tensor, C: Tensor, dt: Tensor, rule: str) -> "System":
        """From the continuous one: real pairs (d, n, 2) and dt (d) of any dtype."""
        E, scale = discretise(as_complex(Lambda), dt.double()[:, None], rule)
        return cls(E, scale * as_complex(B), as_complex(C))

    def step(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token in O(N): z (b, d, n), u (b, d) -> y (b, d) and the next z."""
        z = z - self.E * z + self.B * u[..., None]
        return real_sum(self.C, z).squeeze(-1), z

    def over(self, t: int, handover: bool) -> "Stretch":
        """t tokens at once, in about as many blocks as a block has tokens."""
        log_t = bits(t - 1)
        return Stretch(self, doubled(self.E, log_t + 1), Blocks.of(t, (log_t + 1) // 2))


class Stretch(NamedTuple):
    """A system over many tokens. States h are (d, b, N) in real coordinates."""

    system: System
    E: list[Tensor]
    blocks: Blocks

    def channels(self, part: slice) -> "Stretch":
        """Some of its channels."""
        return Stretch(System(*(v[part] for v in self.system)), [power[part] for power in self.E], self.blocks)

    def kernel(self) -> Tensor:
        """K_i = C Abar^i Bbar for all i: (d, count size) float64."""
        s, blocks = self.system, self.blocks
        starts = orbit((s.C * s.B)[:, None], blocks.across(self.E))[:, : blocks.count]
        powers = orbit(torch.ones_like(s.E)[:, None], blocks.within(self.E))
        return torch.bmm(functionals(starts), coordinates(powers).mT).flatten(1)

    def response(self, h: Tensor) -> Tensor:
        """What an initial state adds to the output: C Abar^(i+1) h for h (d, b, N) -> (b, count size, d)."""
        blocks = self.blocks
        z = couples(h)
        starts = orbit(z - self.E[0][:, None] * z, blocks.across(self.E))[:, : blocks.count * h.shape[1]]
        rows = orbit(self.system.C[:, None], blocks.within(self.E))
        y = torch.bmm(coordinates(starts), functionals(rows).mT)
        return rearrange(y, "d (j b) i -> b (j i) d", j=blocks.count)

    def forced(self, u: Tensor) -> Tensor:
        """The state that inputs alone leave: sum_i Abar^i Bbar u_{t-1-i} for u (b, t, d) -> (d, b, N)."""
        blocks = self.blocks
        u = F.pad(u.double(), (0, 0, blocks.count * blocks.size - u.shape[1], 0))
        columns = orbit(self.system.B[:, None], blocks.within(self.E)).flip(1)
        h = torch.bmm(rearrange(u, "b (j i) d -> d (j b) i", i=blocks.size), coordinates(columns))
        ages = orbit(torch.ones_like(self.system.E)[:, None], blocks.across(self.E))[:, : blocks.count].flip(1)
        z = rearrange(couples(h), "d (j b) n -> d j b n", j=blocks.count)
        return coordinates((z * ages[:, :, None]).sum(dim=1))

    def free(self, lengths: Tensor, h: Tensor) -> Tensor:
        """Abar^length h for h (d, b, N), with a length for each row (b): its binary digits choose among the powers."""
        z = couples(h)
        for level, E in enumerate(self.E):
            digit = (lengths >> level & 1).bool()[None, :, None]
            z = torch.where(digit, z - E[:, None] * z, z)
        return coordinates(z)


def diagonal_kernel(system: System, length: int) -> Tensor:
    """The first `length` entries of the kernel: (d, length) float64."""
    return system.over(length, handover=False).kernel()[:, :length]


# -------------------------------------------------------------------------------------------------- complex rows, real
def orbit(rows: Tensor, powers: list[Tensor]) -> Tensor:
    """rows (d, r, n) -> (d, r 2^len(powers), n): rows M^i, i = 0, 1, ..., by doubling; powers: 1 - M^(2^k), (d, n)."""
    for E in powers:
        rows = torch.cat([rows, rows - E[:, None] * rows], dim=1)
    return rows


def coordinates(z: Tensor) -> Tensor:
    """(..., n) complex -> (..., N) real."""
    return torch.view_as_real(z).flatten(-2)


def couples(h: Tensor) -> Tensor:
    """(..., N) real -> (..., n) complex."""
    return torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous())


def functionals(c: Tensor) -> Tensor:
    """c (..., n) complex -> the real rows (..., N) whose product with the coordinates of z is 2 Re(c z)."""
    return coordinates(2 * conjugate(c))
