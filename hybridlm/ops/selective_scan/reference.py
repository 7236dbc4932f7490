"""The selective scan in plain PyTorch: every chunk of a block at once, one token of each after the other.

A linear recurrence can be cut into chunks: run each chunk from zero, pass the states on from chunk to chunk, run each
again from the state that it should have started with. Both runs take CHUNK steps, however many chunks there are. The
backward pass does the same from right to left; it keeps the states at the chunks' starts only and recomputes the rest.
A step works on about BLOCK numbers, which stay in the processor's cache: that is where the speed comes from.

Letters: c places in a chunk, z chunks of a block. Tensors are laid out (c, b, z, n, d), the channels last.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hybridlm.ops.chunks import fold
from hybridlm.recording import symbolic

CHUNK = 16
BLOCK = 2**18  # 1 MB in float32
FEWEST = 4  # chunks of a block, however large: Python never steps token by token
NEAR, TERMS = 0.25, {torch.float64: 12, torch.float32: 7}  # the series of _phi_slope: where, and terms to be exact


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    u, dt, A, B, C = x.to(wide), dt.to(wide), A.to(wide), B.to(wide), C.to(wide)
    h = u.new_zeros(u.shape[0], *A.shape) if state is None else state.to(wide)
    begins = None if document is None else document != F.pad(document[:, :-1], (1, 0))
    drive, h = Drive(u if zoh else dt * u, dt, A.T, B, C, begins, zoh), h.transpose(1, 2)
    y, h = _step(drive, h) if x.shape[1] == 1 else _scan(drive, h)
    y = y if D is None else y + D.to(wide) * u
    return y.to(x.dtype), h.transpose(1, 2)


class Drive(NamedTuple):
    """All that moves the state: u, dt (..., d), A (n, d), B, C (..., n), and where a document begins (...).

    u is dt x under Euler's rule, where all N states of a channel are driven alike; under zero-order hold it is x, and
    `hold` differs from state to state.
    """

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    begins: Tensor | None
    zoh: bool

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with everything changed that has a time axis."""
        u, dt, B, C, begins = (None if v is None else change(v) for v in (*self[:2], *self[3:6]))
        return self._replace(u=u, dt=dt, B=B, C=C, begins=begins)

    def decay(self) -> Tensor:
        """A-bar = exp(dt A), which forgets everything where a document begins."""
        decay = torch.exp(self.dt.unsqueeze(-2) * self.A)
        return decay if self.begins is None else decay.masked_fill(self.begins[..., None, None], 0)

    def hold(self) -> Tensor:
        """(exp(dt A) - 1) / A, eq. 4: what a constant input of 1 leaves behind after a step."""
        return torch.expm1(self.dt.unsqueeze(-2) * self.A) / self.A

    def advance(self, h: Tensor) -> Tensor:
        """Eq. 2a: h after a token from h before it, A-bar h + B-bar x."""
        B = self.B.unsqueeze(-1)
        return torch.addcmul(self.decay() * h, B * self.hold() if self.zoh else B, self.u.unsqueeze(-2))

    def read(self, h: Tensor) -> Tensor:
        """Eq. 2b: y = C h."""
        return (self.C.unsqueeze(-2) @ h).squeeze(-2)

    def meet(self, g: Tensor, dy: Tensor) -> Tensor:
        """The adjoint of h as `read` sees it: what comes from later tokens, g, and what comes from y."""
        return torch.addcmul(g, self.C.unsqueeze(-1), dy.unsqueeze(-2))

    def pull_hold(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoints of A (..., n, d) and dt (..., d) that come from `hold`, g being that of h."""
        z, g = self.dt.unsqueeze(-2) * self.A, g * self.B.unsqueeze(-1) * self.u.unsqueeze(-2)
        return g * self.dt.square().unsqueeze(-2) * _phi_slope(z), (g * torch.exp(z)).sum(-2)


def _step(drive: Drive, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token."""
    drive = drive.map(lambda v: v.squeeze(1))
    h = drive.advance(h)
    return drive.read(h).unsqueeze(1), h


def _scan(drive: Drive, h: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens; the last chunk is filled up with steps of size 0, which hold the state."""
    t = drive.u.shape[1]
    size = min(CHUNK, t)
    drive = drive.map(lambda v: rearrange(fold(v, size), "b z c ... -> c b z ..."))
    y, h, _ = _Scan.apply(*drive, h) if torch.is_grad_enabled() else _run(drive, h)  # torch.compile needs to be told
    return rearrange(y, "c b z d -> b (z c) d")[:, :t], h


def _phi_slope(z: Tensor) -> Tensor:
    """The derivative of (e^z - 1) / z for z <= 0; near 0, where the quotient loses digits, by its Taylor series."""
    near, series = z.clamp(min=-NEAR), torch.zeros_like(z)
    for k in reversed(range(TERMS[z.dtype])):
        series = series * near / (k + 1) + 1 / (k + 2)  # sum of z^k / (k! (k + 2)), Horner's way
    far = z.clamp(max=-NEAR)
    return torch.where(z < -NEAR, (torch.exp(far) - torch.expm1(far) / far) / far, series)


class _Scan(torch.autograd.Function):
    """(drive folded into chunks, h before the first) -> y, h after the last, h before every chunk."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u, dt, A, B, C, begins, zoh, h) -> tuple[Tensor, Tensor, Tensor]:  # torch.compile counts parameters
        return _run(Drive(u, dt, A, B, C, begins, zoh), h)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[2])
        *drive, ctx.zoh, h = inputs
        ctx.save_for_backward(*drive, h, output[2])

    @staticmethod
    def backward(ctx, dy: Tensor, g: Tensor, _) -> tuple[Tensor | None, ...]:
        *drive, h, starts = ctx.saved_tensors
        drive, dA, parts = Drive(*drive, ctx.zoh), 0, []
        if torch.is_grad_enabled():  # second derivatives flow through the starts too, so they are computed again
            _, _, starts = _run(drive, h)
        for z in reversed(_blocks(drive)):
            block = drive.map(lambda v, z=z: v[:, :, z])
            g, block_dA, rest = _pull_back(block, starts[:, z], dy[:, :, z], g)
            dA = dA + block_dA
            parts.append(rest)
        du, ddt, dB, dC = (torch.cat(part[::-1], dim=2) for part in zip(*parts, strict=True))
        return du, ddt, dA, dB, dC, None, None, g


def _run(drive: Drive, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """drive folded into chunks, h before the first -> y, h after the last, h before every chunk."""
    ys, starts = [], []
    for z in _blocks(drive):
        block = drive.map(lambda v, z=z: v[:, :, z])
        h = _before_chunks(block, h)
        starts.append(h)
        y = []
        for place in _places(block):
            h = place.advance(h)
            y.append(place.read(h))
        ys.append(torch.stack(y))
        h = h[:, -1]
    return torch.cat(ys, dim=2), h, torch.cat(starts, dim=1)


def _pull_back(drive: Drive, h: Tensor, dy: Tensor, g: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One block from right to left. h (b, z, n, d) before its chunks; g (b, n, d): the adjoint of h after the block.

    Returns the adjoint of h before the block, dA, and [du, ddt, dB, dC].
    """
    places = _places(drive)
    hs = [h]
    for place in places:
        hs.append(place.advance(hs[-1]))
    g = _after_chunks(drive, dy, g)
    dA, gradients = torch.zeros_like(g), []
    for place, dy_i, before, after in reversed(list(zip(places, dy, hs[:-1], hs[1:], strict=True))):
        g = place.meet(g, dy_i)
        written = g * place.hold() if drive.zoh else g  # the adjoint of B u
        held = place.pull_hold(g) if drive.zoh else None
        du = (place.B.unsqueeze(-2) @ written).squeeze(-2)
        dB = (written @ place.u.unsqueeze(-1)).squeeze(-1)
        dC = (after @ dy_i.unsqueeze(-1)).squeeze(-1)
        g = place.decay() * g
        rate = g * before  # dL / d(dt A)
        dA, ddt = torch.addcmul(dA, rate, place.dt.unsqueeze(-2)), (rate * place.A).sum(-2)
        if held is not None:
            dA, ddt = dA + held[0], ddt + held[1]
        gradients.append((du, ddt, dB, dC))
    return g[:, 0], dA.sum((0, 1)), [torch.stack(part[::-1]) for part in zip(*gradients, strict=True)]


def _blocks(drive: Drive) -> list[slice]:
    """The chunks, as many at a time as make a step of BLOCK numbers."""
    _, b, z, d = drive.u.shape
    size = z if symbolic(b) else max(FEWEST, BLOCK // (b * d * drive.B.shape[-1]))
    return [slice(start, start + size) for start in range(0, z, size)]


def _places(drive: Drive) -> list[Drive]:
    """The c places in a chunk, one by one."""
    return [drive.map(lambda v, i=i: v[i]) for i in range(len(drive.u))]


def _before_chunks(drive: Drive, h: Tensor) -> Tensor:
    """h before a block (b, n, d) -> h before each of its chunks (b, z, n, d)."""
    drive, local = drive.map(lambda v: v[:, :, :-1]), h.new_zeros(())
    for place in _places(drive):
        local = place.advance(local)
    return _pass_on(h, _whole(drive).decay(), local)


def _after_chunks(drive: Drive, dy: Tensor, g: Tensor) -> Tensor:
    """The adjoint of h after a block (b, n, d) -> that of h after each of its chunks (b, z, n, d)."""
    drive, local = drive.map(lambda v: v[:, :, 1:]), g.new_zeros(())
    for place, dy_i in reversed(list(zip(_places(drive), dy[:, :, 1:], strict=True))):
        local = place.decay() * place.meet(local, dy_i)
    return _pass_on(g, _whole(drive).decay().flip(1), local.flip(1)).flip(1)


def _whole(drive: Drive) -> Drive:
    """A chunk as one step, as far as decay goes: exp(dt_1 A) exp(dt_2 A) ... = exp((dt_1 + dt_2 + ...) A)."""
    return drive._replace(dt=drive.dt.sum(0), begins=None if drive.begins is None else drive.begins.any(0))


def _pass_on(h: Tensor, decay: Tensor, local: Tensor) -> Tensor:
    """From chunk to chunk: h (b, n, d), then decay_k h + local_k for every k -> all of them, (b, z + 1, n, d)."""
    states = [h]
    for k in range(decay.shape[1]):
        states.append(torch.addcmul(local[:, k], decay[:, k], states[-1]))
    return torch.stack(states, dim=1)


def scan_flops(t: int, d: int, n: int, zoh: bool = False) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials are not counted.

    matrix products: C h, 2 n a channel, the last chunk filled up. recurrence: 4 n (dt A, fade, write, add) and 3
    (dt x, D x, add) a channel, once for each token; the first run over the chunks is the price of speed, not of the op.
    Zero-order hold divides by A and multiplies B state by state, and dt and x not at all: 2 n - 1 more a channel.
    """
    size = min(CHUNK, t)
    return 2 * -(-t // size) * size * d * n, t * d * (4 * n + 3 + (2 * n - 1) * zoh)


def work(x: tuple, dt: tuple, A: tuple, *others: tuple | None) -> int:
    """FLOPs of a call whose inputs have these shapes."""
    b, t, d = x
    return b * sum(scan_flops(t, d, A[1]))
