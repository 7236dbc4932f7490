"""The kernels of the norms with gradients, in Triton's interpreter, against float64."""

import pytest
import torch
from torch.library import opcheck

from hybridlm.errors import UnsupportedError
from hybridlm.ops.backend import trace
from hybridlm.ops.norm import gated_rms_norm, layer_norm, rms_norm
from tests.ops.common import error

pytest.importorskip("triton", reason="needs Triton, whose interpreter runs where no GPU is")
from hybridlm.ops.norm import triton_gradients as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the interpreter cuts bf16 off


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few programs, so that small inputs give each several rows, and the last of them fewer."""
    monkeypatch.setattr(kernels, "WARPS", 3)


def inputs(rng, d=60, dtype=torch.float32, b=2, t=5):
    """y in one piece, z cut out of a wider tensor, and a weight, all with gradients."""
    y, z = torch.randn(b, t, d, generator=rng), torch.randn(b, t, d + 9, generator=rng).split([d, 9], -1)[0]
    weight = 2 + torch.randn(d, generator=rng)
    return [v.to(DEVICE, dtype).requires_grad_() for v in (y, z, weight)]


def graded(op, args, *rest, **options):
    """The result and the gradients of what it was made from."""
    y = op(*args, *rest, **options)
    dy = torch.linspace(-1, 1, y.numel(), device=DEVICE).sin().mul(37).cos().reshape(y.shape)
    return y.detach(), *torch.autograd.grad(y, args, dy.to(y.dtype))


CASES = {
    "rms": (rms_norm, 1, (1e-5,)),
    "gated": (gated_rms_norm, 2, (1e-5,)),
    "gated in groups": (gated_rms_norm, 2, (1e-5, 3)),
    "eps counts": (gated_rms_norm, 2, (0.5,)),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype, rng):
    (op, number, rest), (y, z, weight) = CASES[case], inputs(rng, dtype=dtype)
    args = [*(y, z)[:number], weight]
    ours = graded(op, args, *rest, backend="triton")
    true = graded(op, [v.detach().double().requires_grad_() for v in args], *rest, backend="reference")
    for mine, exact, like in zip(ours, true, (weight, *args), strict=True):
        assert mine.dtype == like.dtype
        assert mine.shape == exact.shape
        assert error(mine, exact) < LIMITS[dtype]


@pytest.mark.parametrize(("b", "t", "d"), [(1, 1, 8), (1, 7, 3), (4, 1, 64), (3, 3, 65)])
def test_few_rows_and_odd_widths(b, t, d, rng):
    args = inputs(rng, d, b=b, t=t)
    ours = graded(gated_rms_norm, args, 1e-5, backend="triton")
    true = graded(gated_rms_norm, [v.detach().double().requires_grad_() for v in args], 1e-5, backend="reference")
    assert all(error(mine, exact) < 2e-6 for mine, exact in zip(ours, true, strict=True))


def test_strides_do_not_matter(rng):
    """Rows as they lie in memory, other orders, and a gradient that is one number for all."""
    args = inputs(rng)
    odd = [v.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for v in args]
    for one, other in zip(*(graded(gated_rms_norm, v, 1e-5, backend="triton") for v in (odd, args)), strict=True):
        assert error(one, other.double()) < 1e-6
    grads = (torch.autograd.grad(gated_rms_norm(*args, 1e-5, backend=b).sum(), args) for b in ("triton", "reference"))
    assert all(error(one, other.double()) < 1e-6 for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_small_and_large(scale, rng):
    y, z, weight = inputs(rng)
    args = [(v.detach() * scale).requires_grad_() for v in (y, z)] + [weight]
    ours = graded(gated_rms_norm, args, 1e-5, backend="triton")
    true = graded(gated_rms_norm, [v.detach().double().requires_grad_() for v in args], 1e-5, backend="reference")
    for mine, exact in zip(ours, true, strict=True):
        assert mine.isfinite().all()
        assert (mine - exact).norm() <= 1e-6 * exact.norm() + 1e-30


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("graded", [True, False])
def test_autocast_rounds_what_the_projection_would_round(backend, graded, rng):
    y, z, weight = (v.requires_grad_(graded) for v in inputs(rng))
    plain = gated_rms_norm(y, z, weight, 1e-5, backend=backend)
    with torch.autocast(DEVICE, torch.float16):
        cast = gated_rms_norm(y, z, weight, 1e-5, backend=backend)
        assert gated_rms_norm(y.double(), z.double(), weight.double(), 1e-5).dtype == torch.float64
    assert plain.dtype == torch.float32
    assert torch.equal(cast, plain.half())


@pytest.mark.parametrize("gated", [True, False])
def test_opcheck(gated, rng):
    y, z, weight = (v.detach()[0].requires_grad_() if v.ndim > 1 else v for v in inputs(rng, 8, t=2))
    opcheck(kernels._rms_norm, (y, z if gated else None, weight, 1e-5, 2, torch.float32))


def test_compiled_it_is_one_graph_with_the_kernel_in_it(rng, compiler):
    args = inputs(rng, 16)
    compiled = torch.compile(gated_rms_norm, backend="aot_eager", fullgraph=True)
    ours = graded(compiled, args, 1e-5, backend="triton")
    plain = graded(gated_rms_norm, args, 1e-5, backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    assert compiler["unique_graphs"] == 1


def test_it_is_offered(rng):
    y, z, weight = inputs(rng, 8)
    with trace() as seen:
        gated_rms_norm(y, z, weight, 1e-5, backend="triton")
        rms_norm(y, weight, 1e-5, backend="triton")
    assert [one.backend for one in seen] == ["triton", "triton"]
    assert kernels.lacks(1, y, z, weight) is None
    assert kernels.lacks(2, y.repeat(1, 1, 1024), weight) is None
    assert "at most 16384 bytes" in kernels.lacks(1, y.repeat(1, 1, 1024), weight)
    assert "at most 32 bits" in kernels.lacks(1, y, z, weight.double())
    assert torch.func.grad(lambda y: rms_norm(y, weight, 1e-5).sum())(y).shape == y.shape
    with pytest.raises(UnsupportedError, match="no gradients"):
        layer_norm(y, weight, weight, 1e-5, backend="triton")
