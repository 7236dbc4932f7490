# ruff: noqa: RUF005, SIM102 (Triton unpacks no tuples with a star, and would compile what a constant rules out)
"""The short causal convolution, forward and backward: a program walks down a few channels, its taps in registers.

Every input is read once and every output written once, the next rows on their way while these are worked on. Going
down, the backward pass has before it the inputs that a gradient was made from, and makes that of an input when the last
output that saw it has gone by; the gradients of the weights are summed on the way, a part for each stretch of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.backend import triton_lacks
from hybridlm.ops.causal_conv.around import around, register
from hybridlm.ops.triton_sigmoid import sigmoid

TAPS = 8
ROWS = 65535  # the second and the third axis of a grid end there
CHANNELS = 128  # of a program, which is one warp
STRETCH = 128  # tokens of a program, at most
SHORTEST = 16
PROGRAMS = 2048  # that keep a GPU busy: where there are fewer, stretches are shorter


def lacks(x: Tensor, weight: Tensor) -> str | None:
    """Why these kernels cannot take a call; None if they can."""
    if weight.shape[-1] > TAPS:
        return f"our kernel takes widths up to {TAPS}"
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        return "our kernel takes dtypes of at most 32 bits"
    if len(x) > ROWS:
        return f"our kernel takes at most {ROWS} rows"
    if x.shape[1] > ROWS * STRETCH:
        return f"our kernel takes at most {ROWS * STRETCH} tokens a row"
    return triton_lacks(x)


def causal_conv1d(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return around(_conv, x, *rest)


@torch.library.custom_op("hybridlm::causal_conv1d_triton", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, document: Tensor | None, silu: bool
) -> Tensor:
    y = x.new_empty(x.shape)
    _launch(_forward, None, x, weight, bias, before, document, silu, y)
    return y


@torch.library.custom_op("hybridlm::causal_conv1d_triton_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    document: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, before; empty for what is None."""
    (b, t, c), k = x.shape, weight.shape[1]
    dx, dbefore = x.new_empty(x.shape), x.new_empty(0) if before is None else before.new_empty(before.shape)
    parts = x.new_empty(b * triton.cdiv(t, _stretch(b, t, c)), k + 1, c, dtype=torch.float32)
    registers = _registers(x, k, before, document)
    _launch(_backward, registers, x, weight, bias, before, document, silu, dy.contiguous(), dx, dbefore, parts)
    sums = parts.sum(0)  # of the taps, then of the bias; in the same order every time
    dbias = weight.new_empty(0) if bias is None else sums[k].to(bias.dtype)
    dweight = sums[:k].T.clone(memory_format=torch.contiguous_format).to(weight.dtype)
    return dx, dweight, dbias, dbefore


def _launch(kernel, registers: int | None, x, weight, bias, before, document, silu, *outputs) -> None:
    (b, t, c), k = x.shape, weight.shape[1]
    x = x if x.stride(2) == 1 else x.contiguous()
    weight, bias, before, document = (v if v is None else v.contiguous() for v in (weight, bias, before, document))
    stretch = _stretch(b, t, c)
    grid = (triton.cdiv(c, CHANNELS), triton.cdiv(t, stretch), b)
    with torch.cuda.device_of(x):
        kernel[grid](
            x, weight, bias, before, document, *outputs, t, c, x.stride(0), x.stride(1),
            K=k, SILU=silu, STRETCH=stretch, CHANNELS=CHANNELS, num_warps=1, maxnreg=registers,
        )  # fmt: skip


def _registers(x: Tensor, k: int, before: Tensor | None, document: Tensor | None) -> int | None:
    """At most so many a thread in the backward pass, for more programs at a time; fewer would spill."""
    if k > 4:
        return None
    return 128 if x.element_size() == 2 and before is None and document is None else 168


def _stretch(b: int, t: int, c: int) -> int:
    """Tokens of a program; a power of two."""
    wanted = b * t * triton.cdiv(c, CHANNELS) // PROGRAMS
    return min(STRETCH, max(SHORTEST, triton.next_power_of_2(wanted + 1) // 2))


register(_conv, _conv_backward)


# -------------------------------------------------------------------------------------------------------------- kernels
# What is held of the last tokens stands in tuples, place j being j tokens ago. A kernel goes down ROUND rows at a time.
ROUND = tl.constexpr(4)


@triton.jit
def _taps(weight, bias, at, live, K: tl.constexpr):
    """What the inputs 0, 1, ... tokens ago are multiplied by, and what is added."""
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + at * K + (K - 1 - j), mask=live, other=0).to(tl.float32),)
    shift = tl.zeros_like(taps[0])
    if bias is not None:
        shift = tl.load(bias + at, mask=live, other=0).to(tl.float32)
    return taps, shift


@triton.jit
def _rows(x, i, t, step, at, live):
    """Rows i, i + 1, ... of a sequence of t rows as they lie in memory; zeros outside."""
    rows = ()
    x += tl.cast(i, tl.int64) * step
    for u in tl.static_range(ROUND):
        rows = rows + (tl.load(x + u * step + at, mask=live & (i + u < t), other=0),)
    return rows


@triton.jit
def _row(x, i, t, step, at, live):
    return tl.load(x + tl.cast(i, tl.int64) * step + at, mask=live & (i < t), other=0).to(tl.float32)


@triton.jit
def _gone(x, before, i, c, step, at, live, K: tl.constexpr):
    """Rows i - 1, i - 2, ..., those before row 0 being the state's; the last place is yet empty."""
    gone = ()
    for j in tl.static_range(1, K):
        row = tl.load(x + tl.cast(i - j, tl.int64) * step + at, mask=live & (i >= j), other=0).to(tl.float32)
        if before is not None:
            held = tl.load(before + (i + K - 1 - j) * c + at, mask=live & (i < j), other=0)
            row = tl.where(i < j, held.to(tl.float32), row)
        gone = gone + (row,)
    return gone + (tl.zeros(at.shape, tl.float32),)


@triton.jit
def _owners(document, i, t, COUNT: tl.constexpr, STEP: tl.constexpr):
    """The documents of tokens i, i + STEP, ...; the state's is number 0."""
    owners = ()
    for u in tl.static_range(COUNT):
        o = tl.full((), 0, tl.int32)
        if document is not None:
            at = i + u * STEP
            o = tl.load(document + at, mask=(at >= 0) & (at < t), other=0)
        owners = owners + (o,)
    return owners


@triton.jit
def _none(like, K: tl.constexpr):
    none = ()
    for _ in tl.static_range(K):
        none = none + (tl.zeros_like(like),)
    return none


@triton.jit
def _push(new, held, K: tl.constexpr):
    """A token later: the oldest is gone."""
    out = (new,)
    for j in tl.static_range(K - 1):
        out = out + (held[j],)
    return out


@triton.jit
def _of(held, owners, mine, document, K: tl.constexpr):
    """What is of my document, and 0 for what is not."""
    out = ()
    for j in tl.static_range(K):
        value = held[j]
        if document is not None:
            value = tl.where(owners[j] == mine, value, 0.0)
        out = out + (value,)
    return out


@triton.jit
def _outcome(taps, shift, xs, K: tl.constexpr):
    z = shift + taps[0] * xs[0]
    for j in tl.static_range(1, K):
        z += taps[j] * xs[j]
    return z


@triton.jit
def _forward(
    x, weight, bias, before, document, y, t, c, stride_b, stride_t,
    K: tl.constexpr, SILU: tl.constexpr, STRETCH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = tl.program_id(2).to(tl.int64), tl.program_id(1) * STRETCH
    at = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    live = at < c
    x, y = x + row * stride_b, y + row * t * c
    if before is not None:
        before += row * (K - 1) * c
    if document is not None:
        document += row * t
    taps, shift = _taps(weight, bias, at, live, K)
    xs, os = _gone(x, before, start, c, stride_t, at, live, K), _owners(document, start - 1, t, K, -1)
    rows, owners = _rows(x, start, t, stride_t, at, live), _owners(document, start, t, ROUND, 1)
    for i in range(start, min(start + STRETCH, t), ROUND):
        next_rows = _rows(x, i + ROUND, t, stride_t, at, live)
        next_owners, y_i = _owners(document, i + ROUND, t, ROUND, 1), y + tl.cast(i, tl.int64) * c
        for u in tl.static_range(ROUND):
            xs, os = _push(rows[u].to(tl.float32), xs, K), _push(owners[u], os, K)
            z = _outcome(taps, shift, _of(xs, os, os[0], document, K), K)
            if SILU:
                z = z * sigmoid(z)
            tl.store(y_i + u * c + at, z.to(y.dtype.element_ty), mask=live & (i + u < t))
        rows, owners = next_rows, next_owners


@triton.jit
def _backward(
    x, weight, bias, before, document, dy, dx, dbefore, parts, t, c, stride_b, stride_t,
    K: tl.constexpr, SILU: tl.constexpr, STRETCH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = tl.program_id(2).to(tl.int64), tl.program_id(1) * STRETCH
    at = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    live, end = at < c, min(start + STRETCH, t)
    x, dy, dx = x + row * stride_b, dy + row * t * c, dx + row * t * c
    if before is not None:
        before, dbefore = before + row * (K - 1) * c, dbefore + row * (K - 1) * c
    if document is not None:
        document += row * t
    taps, shift = _taps(weight, bias, at, live, K)
    xs, os = _gone(x, before, start, c, stride_t, at, live, K), _owners(document, start - 1, t, K, -1)
    gs = _none(shift, K)  # the gradients of z; those above are not needed
    ds, db = gs, gs[0]
    if before is not None:
        if start == 0:
            _complete(x, document, dy, dbefore, 0, 1 - K, 0, taps, shift, xs, os, gs, t, c, stride_t, at, live, K, SILU)
    rows, grows = _rows(x, start, t, stride_t, at, live), _rows(dy, start, t, c, at, live)
    owners = _owners(document, start, t, ROUND, 1)
    for i in range(start, end, ROUND):
        next_rows, next_grows = _rows(x, i + ROUND, t, stride_t, at, live), _rows(dy, i + ROUND, t, c, at, live)
        next_owners, dx_i = _owners(document, i + ROUND, t, ROUND, 1), dx + tl.cast(i - (K - 1), tl.int64) * c
        for u in tl.static_range(ROUND):
            xs, os = _push(rows[u].to(tl.float32), xs, K), _push(owners[u], os, K)
            seen = _of(xs, os, os[0], document, K)
            gs = _push(_slope(taps, shift, seen, grows[u].to(tl.float32), K, SILU), gs, K)
            ds, db = _add(ds, gs[0], seen, K), db + gs[0]
            du = _pulled(taps, _of(gs, os, os[K - 1], document, K), K)
            _put(dx_i + u * c + at, du, i + u - (K - 1), start, end, live)
        rows, grows, owners = next_rows, next_grows, next_owners
    _put_sums(parts + ((row * tl.num_programs(1) + tl.program_id(1)) * (K + 1)) * c + at, ds, db, c, live, K)
    i = start + tl.cdiv(end - start, ROUND) * ROUND
    out = dx + tl.cast(i - (K - 1), tl.int64) * c
    _complete(x, document, dy, out, i, start, end, taps, shift, xs, os, gs, t, c, stride_t, at, live, K, SILU)


@triton.jit
def _complete(
    x, document, dy, out, i, first, end, taps, shift, xs, os, gs, t, c, step, at, live,
    K: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Go on from row i, for the gradients of the K - 1 inputs before it; those of rows first to end are written."""
    for u in tl.static_range(K - 1):
        xs = _push(_row(x, i + u, t, step, at, live), xs, K)
        os = _push(_owners(document, i + u, t, 1, 1)[0], os, K)
        seen = _of(xs, os, os[0], document, K)
        gs = _push(_slope(taps, shift, seen, _row(dy, i + u, t, c, at, live), K, SILU), gs, K)
        du = _pulled(taps, _of(gs, os, os[K - 1], document, K), K)
        _put(out + u * c + at, du, i + u - (K - 1), first, end, live)


@triton.jit
def _slope(taps, shift, seen, g, K: tl.constexpr, SILU: tl.constexpr):
    """The gradient of z, of which y is the activation."""
    if SILU:
        z = _outcome(taps, shift, seen, K)
        s = sigmoid(z)
        g *= s + z * (s - s * s)
    return g


@triton.jit
def _add(ds, g, seen, K: tl.constexpr):
    """The gradients of the taps with a token more."""
    out = ()
    for j in tl.static_range(K):
        out = out + (ds[j] + g * seen[j],)
    return out


@triton.jit
def _pulled(taps, gs, K: tl.constexpr):
    """The gradient of the input K - 1 tokens ago, by all that it went into."""
    du = taps[0] * gs[K - 1]
    for j in tl.static_range(1, K):
        du += taps[j] * gs[K - 1 - j]
    return du


@triton.jit
def _put(out, du, i, first, end, live):
    tl.store(out, du.to(out.dtype.element_ty), mask=live & (i >= first) & (i < end))


@triton.jit
def _put_sums(parts, ds, db, c, live, K: tl.constexpr):
    for j in tl.static_range(K):
        tl.store(parts + (K - 1 - j) * c, ds[j], mask=live)
    tl.store(parts + K * c, db, mask=live)
