"""S5's state space model in plain PyTorch: P states as P/2 conjugate couples, one system for all channels.

A linear recurrence is associative: after k doublings every token knows the 2^k tokens up to it, and one more doubling
adds what the token 2^k before knew, Abar^(2^k) later. So log2(t) passes over all tokens replace t steps.

Source: Smith, Warrington, Linderman, Simplified State Space Layers for Sequence Modeling (2022), section 2.2,
appendix H; Blelloch, Prefix Sums and Their Applications (1990).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from hybridlm.ops.chunks import bits
from hybridlm.ops.diagonal_ssm.reference import coordinates, couples, discretise, doubled
from hybridlm.ops.lti import as_complex, conjugate
from hybridlm.ops.rows import last_valid


class System(NamedTuple):
    """The discrete system: E = 1 - Abar (n) and scale (n) complex128 with Bbar = scale B; B (n, d, 2), C (d, n, 2).

    B and C stay what they are, real pairs: all that is done to n d numbers for one token is one product each.
    """

    E: Tensor
    scale: Tensor
    B: Tensor
    C: Tensor

    @classmethod
    def of(cls, Lambda: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> "System":
        """From the continuous one: real pairs and dt (n) of any dtype."""
        return cls(*discretise(as_complex(Lambda), dt.double(), "zoh"), B, C)

    def write(self, u: Tensor) -> Tensor:
        """Bbar u for u (b, t, d) -> (b, t, n) complex, one real matrix product."""
        v = couples(u @ rearrange(self.B.to(u.dtype), "n d two -> d (n two)"))
        return (self.scale * v).to(v.dtype)  # in float64, for the sum that is the gradient of scale

    def read(self, h: Tensor) -> Tensor:
        """2 Re(C h) for h (b, t, n) complex -> (b, t, d)."""
        h = coordinates(h)
        C = self.C.to(h.dtype)
        C = torch.stack([2 * C[..., 0], -2 * C[..., 1]], dim=-1)
        return h @ rearrange(C, "d n two -> (n two) d")


def s5_scan(
    x: Tensor, s: System, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One token in float64, many in float32 at least; the state enters with the first token."""
    one = x.shape[1] == 1
    u = x.to(torch.float64 if one else torch.promote_types(torch.float32, x.dtype))
    v, z = s.write(u), None
    if state is not None:
        z = as_complex(state)
        z = z if document is None else torch.where((document[:, 0] == 0)[:, None], z, 0)
        v = torch.cat([v[:, :1] + (z - s.E * z)[:, None].to(v.dtype), v[:, 1:]], dim=1)
    h = v if one else _Scan.apply(v, s.E, document)
    y = (s.read(h) + D.to(u.dtype) * u).to(x.dtype)
    return y, None if state is None else torch.view_as_real(last_valid(h, z, lengths)).to(state.dtype)


class _Scan(torch.autograd.Function):
    """h_i = (1 - E) h_{i-1} + v_i inside each document: v (b, t, n) complex, E (n) complex128, document (b, t) | None.

    The adjoint runs the same scan from right to left, so only h is kept, and not every doubling.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, E: Tensor, document: Tensor | None) -> Tensor:
        return _run(v, E, document)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        _, E, document = inputs
        ctx.save_for_backward(output, E, document)

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor, None]:
        h, E, document = ctx.saved_tensors
        g = _run(dh.flip(1), conjugate(E), None if document is None else document.flip(1)).flip(1)
        meets = g[:, 1:] * conjugate(_same(h, document, 1))
        return g, -meets.sum(dim=(0, 1), dtype=E.dtype), None


def _run(h: Tensor, E: Tensor, document: Tensor | None) -> Tensor:
    """The scan itself: (b, t, n) -> (b, t, n)."""
    for level, power in enumerate(doubled(E, bits(h.shape[1] - 1))):
        reach = 1 << level
        h = torch.cat([h[:, :reach], h[:, reach:] + (1 - power).to(h.dtype) * _same(h, document, reach)], dim=1)
    return h


def _same(h: Tensor, document: Tensor | None, reach: int) -> Tensor:
    """What stands `reach` tokens before tokens reach, reach + 1, ...: h there, or 0 in another document."""
    h = h[:, :-reach]
    if document is None:
        return h
    return torch.where((document[:, reach:] == document[:, :-reach])[..., None], h, 0)


def s5_flops(d: int, p: int, t: int, state: bool) -> tuple[int, int]:
    """(matrix products, recurrence) of t tokens of one row: d channels, p = P states; exponentials are not counted.

    matrix products: B u and C h, 2 p d each a token. recurrence: Bbar u of B u 6 a couple; a doubling takes 8 a couple,
    for every token that has one so far before it; D u 2 a channel; a state 10 a couple (E z 6, its difference from z 2,
    its sum with Bbar u 2).
    """
    levels = bits(t - 1)
    reached = levels * t - (2**levels - 1)
    return 4 * t * d * p, 4 * p * reached + 3 * t * p + 2 * t * d + 5 * p * state
