"""S4's state space model in plain PyTorch: one step, the convolution kernel, and what an initial state adds.

Every channel has the continuous system x' = A x + B u, y = C x with A = diag(Lambda) - P P^*. Its N states are n = N/2
conjugate couples, of which one each is kept: a complex z (n), for which P^* x = 2 Re(P^* z) and C x = 2 Re(C z).
The bilinear rule with step dt turns it into x_k = Abar x_{k-1} + Bbar u_k:

    Abar = (I - dt/2 A)^-1 (I + dt/2 A)        Bbar = (I - dt/2 A)^-1 dt B

A map of z that commutes with conjugation is a real N x N matrix on coordinates (Re z_1, Im z_1, Re z_2, ...). Powers of
Abar are held as E_k = I - Abar^(2^k): squaring gives E_{k+1} = 2 E_k - E_k^2, and what a small dt leaves of I is not
rounded away, as expm1 does for exp. Abar is a contraction (A + A^* < 0), so its powers need no diagonalisation.

Source: Gu, Goel, Re, Efficiently Modeling Long Sequences with Structured State Spaces (2021), section 3, appendix C.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from hybridlm.ops.long_conv import long_conv

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
        """From real pairs (d, n, 2) and dt (d) of any dtype. A dt under 1e-60 holds the state just as 1e-60 does."""
        return cls(*(as_complex(x) for x in (Lambda, P, B, C)), dt.double().clamp(min=1e-60)[:, None])


def as_complex(x: Tensor) -> Tensor:
    """Real pairs (..., 2) of any dtype -> complex128."""
    return torch.complex(*x.double().unbind(-1))


def conjugate(z: Tensor) -> Tensor:
    """conj(z) in memory of its own: torch's lazy conj() has no rule under vmap."""
    return torch.complex(z.real, -z.imag)


def real_sum(a: Tensor, b: Tensor) -> Tensor:
    """2 Re(sum a b) over the couples, kept as a dimension of size 1."""
    return 2 * (a.real * b.real - a.imag * b.imag).sum(dim=-1, keepdim=True)


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
        """One token in O(N): z (b, d, n), u (b, d) -> y (b, d) and the next z."""
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


class Blocks(NamedTuple):
    """How t tokens are cut: `count` blocks of `size` = 2^log_size; 2^log_count is at least count."""

    log_size: int
    log_count: int
    count: int

    @classmethod
    def of(cls, t: int) -> "Blocks":
        log_t = (t - 1).bit_length()
        log_size = min(log_t, LOG_BLOCK)
        return cls(log_size, log_t - log_size, -(-t >> log_size))

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return 1 << self.log_size

    @property
    def levels(self) -> int:
        """Number of powers of Abar that the kernel needs."""
        return self.log_size + max(1, self.log_count)

    def within(self, powers: list[Tensor]) -> list[Tensor]:
        """Powers of Abar that are less than a block."""
        return powers[: self.log_size]

    def across(self, powers: list[Tensor]) -> list[Tensor]:
        """Powers of Abar that move by whole blocks."""
        return powers[self.log_size : self.log_size + self.log_count]


# ---------------------------------------------------------------------------------------------------------- the kernel
def kernel(s: System, system: Discrete, blocks: Blocks) -> Tensor:
    """K_i = C Abar^i Bbar for all i: (d, count size) float64.

    Block j of K is the kernel of the same system with C_j = C Abar^(j size): all blocks share the Cauchy matrix of
    `size` roots of unity. The generating function of one block is truncated by C~_j = C_j (I - Abar^size).
    """
    rows = orbit(system.C, blocks.across(system.E))[:, : blocks.count]
    spectrum = generating_function(s, torch.bmm(rows, system.E[blocks.log_size]), blocks.size)
    return torch.fft.irfft(spectrum, n=blocks.size).flatten(1)


def generating_function(s: System, rows: Tensor, size: int) -> Tensor:
    """C~ (I - Abar z)^-1 Bbar at z = e^(-i w), w = 2 pi l / size, l <= size/2: rows C~ (d, j, N) -> (d, j, l) complex.

    Lemma C.3 has 2/(1+z) C~ (g - A)^-1 B with g = 2/dt (1-z)/(1+z), infinite at z = -1. Multiplied through, with
    c = cos(w/2) and s = sin(w/2), it is e^(iw/2) dt/2 C~ (i s - c dt/2 A)^-1 B, which is finite everywhere.
    """
    half = s.dt[..., None] / 2
    angle = torch.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64, device=rows.device)
    cos, sin = angle.cos(), angle.sin()
    poles = half * s.Lambda[..., None]
    plus, minus = (1 / (1j * sin - cos * pole) for pole in (poles, conjugate(poles)))
    r = cauchy(torch.cat([rows, coordinates(2 * s.P)], dim=1), torch.stack([s.B, s.P], dim=2), plus, minus)
    (r00, r01), (r10, r11) = r[:, :-1].unbind(2), r[:, -1:].unbind(2)
    low_rank = half * cos
    return torch.exp(1j * angle) * half * (r00 - low_rank * r01 * r10 / (1 + low_rank * r11))


def cauchy(rows: Tensor, v: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """rows (i s - c dt/2 Lambda)^-1 v, summed over both of each couple.

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
    blocks = Blocks.of(length)
    return kernel(s, Discrete.of(s, blocks.levels), blocks)[:, :length]


# ------------------------------------------------------------------------------------------- from a state, to a state
def response(system: Discrete, blocks: Blocks, h: Tensor) -> Tensor:
    """What an initial state adds to the output: C Abar^(i+1) h for h (d, b, N) -> (b, count size, d)."""
    rows = orbit(system.C, blocks.within(system.E))
    first = torch.baddbmm(h, h, system.E[0].mT, alpha=-1)
    starts = orbit(first, transposed(blocks.across(system.E)))
    starts = starts[:, : blocks.count * h.shape[1]]
    return rearrange(torch.bmm(starts, rows.mT), "d (j b) i -> b (j i) d", j=blocks.count)


def forced_state(system: Discrete, blocks: Blocks, u: Tensor) -> Tensor:
    """The state that inputs alone leave: sum_i Abar^i Bbar u_{t-1-i} for u (b, t, d) -> (d, b, N).

    Each block's state by one matrix product; then neighbours are joined, Abar^size apart, until one is left.
    """
    E = transposed(system.E)
    columns = orbit(system.B, blocks.within(E)).flip(1)
    u = torch.nn.functional.pad(u.double(), (0, 0, (blocks.size << blocks.log_count) - u.shape[1], 0))
    h = torch.bmm(rearrange(u, "b (j i) d -> d (j b) i", i=blocks.size), columns)
    for power in blocks.across(E):
        before, after = rearrange(h, "d (j two b) n -> two d (j b) n", two=2, b=u.shape[0])
        h = after + torch.baddbmm(before, before, power, alpha=-1)
    return h


def free_state(system: Discrete, lengths: Tensor, h: Tensor) -> Tensor:
    """Abar^length h for h (d, b, N), with a length for each row (b): its binary digits choose among the powers."""
    for level, E in enumerate(transposed(system.E)):
        digit = (lengths >> level & 1).bool()[None, :, None]
        h = torch.where(digit, torch.baddbmm(h, h, E, alpha=-1), h)
    return h


def last_document(u: Tensor, h: Tensor, lengths: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the final state is made of: u (b, t, d) -> each row's last document, moved to the right end of zeros.

    h (d, b, N) -> the same where that document is the state's own, number 0, and zeros where it is not.
    """
    steps = torch.arange(u.shape[1], device=u.device)
    keep = steps < lengths[:, None]
    if document is not None:
        keep = keep & (document == document[:, -1:])
        h = torch.where((document[:, -1] == 0)[:, None], h, 0)
    source = steps - (u.shape[1] - lengths[:, None])
    keep = keep.gather(1, source.clamp(min=0)) & (source >= 0)
    u = u.gather(1, repeat(source.clamp(min=0), "b t -> b t d", d=u.shape[2]))
    return torch.where(keep[..., None], u, 0), h


# ------------------------------------------------------------------------------------------------------------- the scan
def scan(
    x: Tensor, s: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One token by the recurrence, many by the convolution; both go on from the state."""
    take = one_token if x.shape[1] == 1 else many_tokens
    y, h = take(x.to(torch.promote_types(torch.float32, x.dtype)), s, D, state, lengths, document)
    return y.to(x.dtype), None if h is None else h.to(state.dtype)


def one_token(
    x: Tensor, s: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x (b, 1, d): the recurrence, O(N) a channel."""
    z = s.C.new_zeros(()) if state is None else as_complex(state)
    if document is not None:
        z = torch.where((document == 0)[..., None], z, 0)
    y, after = Bilinear.of(s).step(z, x[:, 0].double())
    if lengths is not None:
        after = torch.where((lengths > 0)[:, None, None], after, z)
    y = (y + D.double() * x[:, 0]).to(x.dtype)[:, None]
    return y, None if state is None else torch.view_as_real(after)


def many_tokens(
    x: Tensor, s: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x (b, t, d): the convolution; a state adds its response, and its successor comes from powers of Abar."""
    b, t, _ = x.shape
    blocks = Blocks.of(t)
    system = Discrete.of(s, blocks.levels if state is None else (t - 1).bit_length() + 1)
    y = long_conv(x, kernel(s, system, blocks), D, document=document)
    if state is None:
        return y, None
    h = rearrange(state.double(), "b d n two -> d b (n two)")
    added = response(system, blocks, h)[:, :t].to(x.dtype)
    y = y + (added if document is None else torch.where((document == 0)[..., None], added, 0))
    lengths = torch.full((b,), t, device=x.device) if lengths is None else lengths
    u, h = last_document(x, h, lengths, document)
    h = forced_state(system, blocks, u) + free_state(system, lengths, h)
    return y, rearrange(h, "d b (n two) -> b d n two", two=2)
