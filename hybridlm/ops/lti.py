"""Linear time-invariant systems, one a channel: what S4's and the diagonal ones have in common.

A channel's N states are n = N/2 conjugate couples, of which one each is kept: a complex z (n), for which C x means
2 Re(C z), or N real coordinates (Re z_1, Im z_1, Re z_2, ...). Powers of Abar are held as E_k = I - Abar^(2^k):
squaring gives E_{k+1} = 2 E_k - E_k^2, and what a small dt leaves of I is not rounded away, as expm1 does for exp.

One token is the recurrence; many are a convolution, to which a state adds its response, and whose final state comes
from powers of Abar. Source: Gu, Goel, Re, Efficiently Modeling Long Sequences with Structured State Spaces (2021),
section 2.
"""

from typing import NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from hybridlm.ops.chunks import bits
from hybridlm.ops.long_conv import long_conv
from hybridlm.recording import symbolic

BYTES = 2**27  # of float64 that a state is handed over by at once: more channels are taken part by part


# ------------------------------------------------------------------------------------------------------ complex numbers
def as_complex(x: Tensor) -> Tensor:
    """Real pairs (..., 2) of any dtype -> complex128."""
    return torch.complex(*x.double().unbind(-1))


def conjugate(z: Tensor) -> Tensor:
    """conj(z) in memory of its own: torch's lazy conj() has no rule under vmap."""
    return torch.complex(z.real, -z.imag)


def real_sum(a: Tensor, b: Tensor) -> Tensor:
    """2 Re(sum a b) over the couples, kept as a dimension of size 1."""
    return 2 * (a.real * b.real - a.imag * b.imag).sum(dim=-1, keepdim=True)


# --------------------------------------------------------------------------------------------------------- what is cut
class Blocks(NamedTuple):
    """How t tokens are cut: `count` blocks of `size` = 2^log_size; 2^log_count is at least count."""

    log_size: int
    log_count: int
    count: int

    @classmethod
    def of(cls, t: int, log_size: int) -> "Blocks":
        """Blocks of 2^log_size tokens, or of all that there are."""
        log_t = bits(t - 1)
        log_size = min(log_t, log_size)
        return cls(log_size, log_t - log_size, -(-t >> log_size))

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return 1 << self.log_size

    @property
    def levels(self) -> int:
        """Number of powers of Abar that S4's kernel needs."""
        return self.log_size + max(1, self.log_count)

    def within(self, powers: list[Tensor]) -> list[Tensor]:
        """Powers of Abar that are less than a block."""
        return powers[: self.log_size]

    def across(self, powers: list[Tensor]) -> list[Tensor]:
        """Powers of Abar that move by whole blocks."""
        return powers[self.log_size : self.log_size + self.log_count]


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
class Stretch(Protocol):
    """A system over t tokens at once. States h are (d, b, N) in real coordinates."""

    def channels(self, part: slice) -> "Stretch":
        """Some of its channels."""

    def kernel(self) -> Tensor:
        """K_i = C Abar^i Bbar for i < t at least: (d, t or more)."""

    def response(self, h: Tensor) -> Tensor:
        """What a state before the first token adds to the output: C Abar^(i+1) h, (b, t or more, d)."""

    def forced(self, u: Tensor) -> Tensor:
        """The state that inputs u (b, t, d) alone leave: sum_i Abar^i Bbar u_{t-1-i}."""

    def free(self, lengths: Tensor, h: Tensor) -> Tensor:
        """Abar^length h, with a length for each row (b)."""


class System(Protocol):
    """A discrete system in each of d channels."""

    def step(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token: z (b, d, n) complex or a single zero, u (b, d) -> y (b, d) without D u, and the next z."""

    def over(self, t: int, handover: bool) -> Stretch:
        """Many tokens; handover: from a state to a state."""


def scan(
    x: Tensor, system: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One token by the recurrence, many by the convolution; both go on from the state (b, d, n, 2)."""
    take = one_token if x.shape[1] == 1 else many_tokens
    y, h = take(x.to(torch.promote_types(torch.float32, x.dtype)), system, D, state, lengths, document)
    return y.to(x.dtype), None if h is None else h.to(state.dtype)


def one_token(
    x: Tensor, system: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x (b, 1, d): the recurrence."""
    z = torch.zeros((), dtype=torch.complex128, device=x.device) if state is None else as_complex(state)
    if document is not None:
        z = torch.where((document == 0)[..., None], z, 0)
    y, after = system.step(z, x[:, 0].double())
    if lengths is not None:
        after = torch.where((lengths > 0)[:, None, None], after, z)
    y = (y + D.double() * x[:, 0]).to(x.dtype)[:, None]
    return y, None if state is None else torch.view_as_real(after)


def many_tokens(
    x: Tensor, system: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x (b, t, d): the convolution; a state adds its response, and its successor comes from powers of Abar."""
    b, t, d = x.shape
    stretch = system.over(t, handover=state is not None)
    y = long_conv(x, stretch.kernel(), D, document=document)
    if state is None:
        return y, None
    lengths = torch.full((b,), t, device=x.device) if lengths is None else lengths
    size = d if symbolic(b) else max(1, BYTES // (8 * b * t))
    parts = [slice(first, min(first + size, d)) for first in range(0, d, size)]
    pieces = [hand_over(x[..., part], stretch.channels(part), state[:, part], lengths, document) for part in parts]
    added, after = zip(*pieces, strict=True)
    return y + torch.cat(added, dim=-1), torch.cat(after, dim=1)


def hand_over(
    x: Tensor, stretch: Stretch, state: Tensor, lengths: Tensor, document: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x (b, t, d), state (b, d, n, 2) -> what the state adds to the output, and the one after each row's last token."""
    h = rearrange(state.double(), "b d n two -> d b (n two)")
    added = stretch.response(h)[:, : x.shape[1]].to(x.dtype)
    added = added if document is None else torch.where((document == 0)[..., None], added, 0)
    u, h = last_document(x, h, lengths, document)
    h = stretch.forced(u) + stretch.free(lengths, h)
    return added, rearrange(h, "d b (n two) -> b d n two", two=2)
