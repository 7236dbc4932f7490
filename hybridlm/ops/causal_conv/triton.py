"""The short causal convolution, forward and backward: a program walks down a few channels, its taps in registers.

Every input is read once and every output written once. Going down, the backward pass has before it the inputs that a
gradient was made from, and makes that of an input when the last output that saw it has gone by; the gradients of the
weights are summed on the way, a part for each stretch of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.backend import triton_lacks
from hybridlm.ops.causal_conv.around import around

TAPS = 4
ROWS = 65535  # the third axis of a grid ends there
CHANNELS = 128  # of a program, which is one warp
STRETCH = 128  # tokens of a program


def lacks(x: Tensor, weight: Tensor) -> str | None:
    """Why these kernels cannot take a call; None if they can."""
    if not 2 <= weight.shape[-1] <= TAPS:
        return f"our kernel takes widths from 2 to {TAPS}"
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        return "our kernel takes dtypes of at most 32 bits"
    if len(x) > ROWS:
        return f"our kernel takes at most {ROWS} rows"
    return triton_lacks(x)


def causal_conv1d(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return around(_conv, x, *rest)


@torch.library.custom_op("hybridlm::causal_conv1d_triton", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, document: Tensor | None, silu: bool
) -> Tensor:
    y = x.new_empty(x.shape)
    _launch(_forward, x, weight, bias, before, document, silu, y)
    return y


@_conv.register_fake
def _(x, weight, bias, before, document, silu):
    return x.new_empty(x.shape)


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
    parts = x.new_empty(b * triton.cdiv(t, STRETCH), TAPS + 1, c, dtype=torch.float32)
    _launch(_backward, x, weight, bias, before, document, silu, dy.contiguous(), dx, dbefore, parts)
    sums = parts.sum(0)  # of the taps, the present first, then of the bias
    dbias = weight.new_empty(0) if bias is None else sums[TAPS].to(bias.dtype)
    return dx, sums[:k].flip(0).T.to(weight.dtype).contiguous(), dbias, dbefore


@_conv_backward.register_fake
def _(dy, x, weight, bias, before, document, silu):
    inputs = (x, weight, weight[:0, 0] if bias is None else bias, x[0, 0, :0] if before is None else before)
    return tuple(v.new_empty(v.shape) for v in inputs)


def _launch(kernel, x, weight, bias, before, document, silu, *outputs) -> None:
    (b, t, c), k = x.shape, weight.shape[1]
    x = x if x.stride(2) == 1 else x.contiguous()
    weight, bias, before, document = (v if v is None else v.contiguous() for v in (weight, bias, before, document))
    grid = (triton.cdiv(c, CHANNELS), triton.cdiv(t, STRETCH), b)
    with torch.cuda.device_of(x):
        kernel[grid](
            x, weight, bias, before, document, *outputs, t, c, x.stride(0), x.stride(1),
            K=k, SILU=silu, STRETCH=STRETCH, CHANNELS=CHANNELS, num_warps=1,
        )  # fmt: skip


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.silu = inputs[5]


def _pull_back(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    _, _, bias, before, _ = ctx.saved_tensors
    dx, dw, db, dbefore = _conv_backward(dy, *ctx.saved_tensors, ctx.silu)
    return dx, dw, None if bias is None else db, None if before is None else dbefore, None, None


_conv.register_autograd(_pull_back, setup_context=_keep)


# -------------------------------------------------------------------------------------------------------------- kernels
# Numbers after a name are how many tokens ago: x1 is the input before x0. n1 to n3 are rows to come, on their way while
# the others are worked on.
@triton.jit
def _taps(weight, bias, at, live, K: tl.constexpr):
    """What the inputs 0, 1, 2 and 3 tokens ago are multiplied by, and what is added."""
    w0 = tl.load(weight + at * K + K - 1, mask=live, other=0).to(tl.float32)
    w1 = tl.load(weight + at * K + K - 2, mask=live, other=0).to(tl.float32)
    w2 = tl.load(weight + at * K + K - 3, mask=live & (K > 2), other=0).to(tl.float32)
    w3 = tl.load(weight + at * K + K - 4, mask=live & (K > 3), other=0).to(tl.float32)
    shift = tl.zeros_like(w0)
    if bias is not None:
        shift = tl.load(bias + at, mask=live, other=0).to(tl.float32)
    return w0, w1, w2, w3, shift


@triton.jit
def _sum(w0, w1, w2, w3, x0, x1, x2, x3, K: tl.constexpr):
    """Taps that are not there touch nothing, be it NaN."""
    z = w0 * x0 + w1 * x1
    if K > 2:
        z += w2 * x2
    if K > 3:
        z += w3 * x3
    return z


@triton.jit
def _row(x, i, t, step, at, live):
    """Row i of a sequence of t rows; zeros outside."""
    return tl.load(x + i * step + at, mask=live & (i >= 0) & (i < t), other=0).to(tl.float32)


@triton.jit
def _coming(x, i, t, step, at, live):
    """Rows i, i + 1 and i + 2."""
    n0, n1 = _row(x, i, t, step, at, live), _row(x, i + 1, t, step, at, live)
    return n0, n1, _row(x, i + 2, t, step, at, live)


@triton.jit
def _gone(x, before, i, t, c, step, at, live, K: tl.constexpr):
    """Rows i - 1, i - 2 and i - 3, those before row 0 being the state's."""
    x1, x2 = _row(x, i - 1, t, step, at, live), _row(x, i - 2, t, step, at, live)
    x3 = _row(x, i - 3, t, step, at, live)
    if before is not None:  # a view of it whose row -1 is the latest
        before += (K - 1) * c + at
        x1 += tl.load(before + (i - 1) * c, mask=live & (i < 1), other=0).to(tl.float32)
        x2 += tl.load(before + (i - 2) * c, mask=live & (i < 2) & (i + K > 2), other=0).to(tl.float32)
        x3 += tl.load(before + (i - 3) * c, mask=live & (i < 3) & (i + K > 3), other=0).to(tl.float32)
    return x1, x2, x3


@triton.jit
def _owner(document, i, t):
    """The document of token i; the state's is number 0."""
    o = 0
    if document is not None:
        o = tl.load(document + i, mask=(i >= 0) & (i < t), other=0)
    return o


@triton.jit
def _of(x, owner, mine, document):
    """x where it is of my document, 0 where it is not."""
    if document is not None:
        x = tl.where(owner == mine, x, 0.0)
    return x


@triton.jit
def _forward(
    x, weight, bias, before, document, y, t, c, stride_b, stride_t,
    K: tl.constexpr, SILU: tl.constexpr, STRETCH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * STRETCH
    at = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    live = at < c
    x, y = x + row * stride_b, y + row * t * c
    if before is not None:
        before += row * (K - 1) * c
    if document is not None:
        document += row * t
    w0, w1, w2, w3, shift = _taps(weight, bias, at, live, K)
    x1, x2, x3 = _gone(x, before, start, t, c, stride_t, at, live, K)
    x0, n1, n2 = _coming(x, start, t, stride_t, at, live)
    o1, o2, o3 = _owner(document, start - 1, t), _owner(document, start - 2, t), _owner(document, start - 3, t)
    for i in range(start, min(start + STRETCH, t)):
        n3, o0 = _row(x, i + 3, t, stride_t, at, live), _owner(document, i, t)
        m1, m2, m3 = _of(x1, o1, o0, document), _of(x2, o2, o0, document), _of(x3, o3, o0, document)
        z = shift + _sum(w0, w1, w2, w3, x0, m1, m2, m3, K)
        if SILU:
            z = z * tl.sigmoid(z)
        tl.store(y + i * c + at, z.to(y.dtype.element_ty), mask=live)
        x3, x2, x1, x0, n1, n2 = x2, x1, x0, n1, n2, n3
        o3, o2, o1 = o2, o1, o0


@triton.jit
def _backward(
    x, weight, bias, before, document, dy, dx, dbefore, parts, t, c, stride_b, stride_t,
    K: tl.constexpr, SILU: tl.constexpr, STRETCH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * STRETCH
    at = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    live, end = at < c, min(start + STRETCH, t)
    x, dy, dx = x + row * stride_b, dy + row * t * c, dx + row * t * c
    if before is not None:
        before, dbefore = before + row * (K - 1) * c, dbefore + row * (K - 1) * c
    if document is not None:
        document += row * t
    w0, w1, w2, w3, shift = _taps(weight, bias, at, live, K)
    x1, x2, x3 = _gone(x, before, start, t, c, stride_t, at, live, K)
    x0, n1, n2 = _coming(x, start, t, stride_t, at, live)
    g0, h1, h2 = _coming(dy, start, t, c, at, live)
    o1, o2, o3 = _owner(document, start - 1, t), _owner(document, start - 2, t), _owner(document, start - 3, t)
    g1, g2, g3 = tl.zeros_like(w0), tl.zeros_like(w0), tl.zeros_like(w0)  # of z; those above are not needed
    d0, d1, d2, d3, db = g1, g1, g1, g1, g1
    for i in range(start, end + 3):  # the last three complete the gradients of the last inputs
        n3, h3 = _row(x, i + 3, t, stride_t, at, live), _row(dy, i + 3, t, c, at, live)
        o0 = _owner(document, i, t)
        m1, m2, m3 = _of(x1, o1, o0, document), _of(x2, o2, o0, document), _of(x3, o3, o0, document)
        if SILU:
            z = shift + _sum(w0, w1, w2, w3, x0, m1, m2, m3, K)
            s = tl.sigmoid(z)
            g0 = g0 * s * (1 + z * (1 - s))
        own = tl.where(i < end, g0, 0.0)
        d0, d1, d2, d3, db = d0 + own * x0, d1 + own * m1, d2 + own * m2, d3 + own * m3, db + own
        u2, u1, u0 = _of(g2, o2, o3, document), _of(g1, o1, o3, document), _of(g0, o0, o3, document)
        du = _sum(w0, w1, w2, w3, g3, u2, u1, u0, K)  # of the input three tokens ago
        _put(dx, dbefore, before, du, i - 3, start, c, at, live, K)
        x3, x2, x1, x0, n1, n2 = x2, x1, x0, n1, n2, n3
        g3, g2, g1, g0, h1, h2 = g2, g1, g0, h1, h2, h3
        o3, o2, o1 = o2, o1, o0
    parts += ((row * tl.num_programs(1) + tl.program_id(1)) * 5) * c + at
    _put_sums(parts, d0, d1, d2, d3, db, c, live)


@triton.jit
def _put(dx, dbefore, before, du, i, start, c, at, live, K: tl.constexpr):
    """The gradient of row i, be it an input or the state's."""
    tl.store(dx + i * c + at, du.to(dx.dtype.element_ty), mask=live & (i >= start))
    if before is not None:
        held = live & (i < 0) & (i >= 1 - K) & (start == 0)
        tl.store(dbefore + (i + K - 1) * c + at, du.to(dbefore.dtype.element_ty), mask=held)


@triton.jit
def _put_sums(parts, d0, d1, d2, d3, db, c, live):
    tl.store(parts, d0, mask=live)
    tl.store(parts + c, d1, mask=live)
    tl.store(parts + 2 * c, d2, mask=live)
    tl.store(parts + 3 * c, d3, mask=live)
    tl.store(parts + 4 * c, db, mask=live)
