"""The kernel of a linear layer for few rows, in Triton's interpreter, against float64."""

import pytest
import torch

from hybridlm.layers.linear import Linear
from hybridlm.ops.backend import trace, use
from hybridlm.ops.linear import ROWS, _lacks, linear

LIMITS = {
    torch.float32: 2e-6,
    torch.float16: 5e-4,
    torch.bfloat16: 8e-3,
}  # the interpreter cuts bf16 off where a GPU rounds


def drawn(rows, inner, outer, dtype, rng):
    x, w, b = (torch.randn(shape, generator=rng) for shape in ((*rows, inner), (outer, inner), (outer,)))
    return x.to(dtype), (w * inner**-0.5).to(dtype), b.to(dtype)


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


SHAPES = [((1, 1), 64, 9), ((3,), 70, 5), ((2, 2), 33, 4), ((9, 1), 65, 33)]
CASES = [(*shape, dtype) for shape in SHAPES for dtype in LIMITS]


# the interpreter multiplies bf16 matrices as if they were integers, so tl.dot meets them on a GPU alone
@pytest.mark.parametrize(
    ("rows", "inner", "outer", "dtype"), [c for c in CASES if (c[0][0], c[3]) != (9, torch.bfloat16)]
)
def test_rows_times_weight(rows, inner, outer, dtype, rng):
    x, w, b = drawn(rows, inner, outer, dtype, rng)
    for bias in (None, b):
        want = torch.nn.functional.linear(x.double(), w.double(), None if bias is None else bias.double())
        got = linear(x, w, bias, backend="triton")
        assert got.shape == want.shape
        assert got.dtype == dtype
        assert error(got, want) < LIMITS[dtype]


def test_inner_widths_beyond_one_load(rng, monkeypatch):
    from hybridlm.ops.linear import triton as kernels

    monkeypatch.setattr(kernels, "WIDEST", 32)
    x, w, b = drawn((2,), 100, 6, torch.float32, rng)
    want = torch.nn.functional.linear(x.double(), w.double(), b.double())
    assert error(linear(x, w, b, backend="triton"), want) < 2e-6


def test_rows_and_weights_that_are_slices(rng):
    x, w, _ = drawn((2, 3), 48, 20, torch.float32, rng)
    for rows in (x[..., 8:40], x[:, 1:2, :32], x.transpose(0, 1)[..., ::2][..., :16]):
        weight = w[3:17, : rows.shape[-1]]
        want = torch.nn.functional.linear(rows.double(), weight.double())
        assert error(linear(rows, weight, backend="triton"), want) < 2e-6


def test_what_the_kernel_does_not_take_goes_to_pytorch(rng):
    x, w, b = drawn((2,), 8, 8, torch.float32, rng)

    def taken(x, w):
        with use("triton"), trace() as seen:
            linear(x, w, b)
        return seen[0].backend

    assert taken(x, w) == "triton"
    assert taken(x, w.clone().requires_grad_()) == "reference"
    assert taken(x.clone().requires_grad_(), w) == "reference"
    with torch.no_grad():
        assert taken(x, w.clone().requires_grad_()) == "triton"
    assert taken(x, w.T) == "reference"
    assert taken(x.expand(ROWS + 1, 2, 8)[:, 0], w) == "reference"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert taken(x, w) == "reference"


def test_a_layer_is_a_linear_layer():
    layer = Linear(4, 3)
    assert isinstance(layer, torch.nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    with torch.no_grad(), use("triton"), trace() as seen:
        layer(x)
    assert [one.backend for one in seen] == ["triton"]


@pytest.mark.parametrize("rows", [1, 9])
def test_wide_is_exact_whatever_the_weights(rows, rng):
    for of_x, of_w in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        x, w, b = drawn((rows, 1), 48, 20, of_x, rng)
        w, b = w.to(of_w), b.to(of_w)
        y = linear(x, w, b, wide=True, backend="triton")
        assert y.dtype == torch.float32
        assert error(y, torch.nn.functional.linear(x.double(), w.double(), b.double())) < 2e-6


def test_a_width_that_does_not_fit_is_left_to_pytorch_to_refuse(rng):
    x, w, b = drawn((2,), 16, 8, torch.float32, rng)
    assert _lacks(x, w, b, wide=False) is None
    assert "one length" in _lacks(x[:, :9], w, b, wide=False)


def test_opcheck(rng):
    from hybridlm.ops.linear.triton import linear_rows

    x, w, b = drawn((2,), 16, 8, torch.float32, rng)
    for bias in (None, b):
        torch.library.opcheck(linear_rows, (x, w, bias, False), test_utils=("test_schema", "test_faketensor"))
