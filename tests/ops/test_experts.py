"""Grouped matrix products: the same on every way to them, and no row sees another."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.experts import by_expert, grouped_linear

COUNTS = {
    "some empty": [3, 0, 4, 0, 1],
    "one has all": [0, 8, 0, 0, 0],
    "first and last": [7, 0, 0, 0, 1],
    "few rows": [0, 1, 0, 0, 2],
    "one group": [8],
}


def parts(counts: list[int], dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight = torch.randn(sum(counts), 6, dtype=dtype), torch.randn(len(counts), 5, 6, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts)


def loop(x, weight, counts):
    """Row by row."""
    group = [e for e, count in enumerate(counts.tolist()) for _ in range(count)]
    return torch.stack([weight[e] @ row for e, row in zip(group, x, strict=True)])


def static(x, weight, counts):
    """What runs where counts cannot be looked at: both of its ways are here, as some cases have few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return grouped_linear(x, weight, counts)


def vmapped(x, weight, counts):
    return torch.vmap(lambda x: grouped_linear(x, weight, counts + 0 * x[0, 0].detach().long()))(x[None])[0]


@pytest.mark.parametrize("way", [grouped_linear, static, vmapped])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_every_way_is_the_loop(counts, way):
    x, weight, counts = parts(counts)
    truth, y = loop(x, weight, counts), way(x, weight, counts)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(y)
    expected = torch.autograd.grad(truth, (x, weight), seed)
    for one, other in zip(torch.autograd.grad(y, (x, weight), seed), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_gradients(counts):
    x, weight, counts = parts(counts)
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, counts), (x, weight), fast_mode=True)


@pytest.mark.parametrize("way", [grouped_linear, static])
def test_a_row_that_is_not_finite_spoils_no_other(way):
    x, weight, counts = parts(COUNTS["some empty"])
    clean = way(x, weight, counts)
    with torch.no_grad():
        x[4] = torch.nan
    y = way(x, weight, counts)
    others = torch.arange(8) != 4
    assert y[4].isnan().all()
    torch.testing.assert_close(y[others], clean[others])
    gradient = torch.autograd.grad(y[:3].sum(), weight)[0]
    assert gradient[0].isfinite().all()
    assert (gradient[1:2] == 0).all()


def test_work_is_that_of_the_rows():
    for counts in COUNTS.values():
        with FlopCounterMode(display=False) as counter:
            grouped_linear(*parts(counts))
        assert counter.get_total_flops() == 2 * sum(counts) * 6 * 5


@pytest.mark.parametrize("way", [grouped_linear, static])
def test_no_rows_give_none(way):
    x, weight, counts = parts([0, 0, 0])
    y = way(x, weight, counts)
    assert y.shape == (0, 5)
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


@pytest.mark.parametrize("way", [grouped_linear, static])
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 2]])
def test_the_dtype_is_autocast_s_with_rows_and_without(way, counts):
    x, weight, counts = parts(counts, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert way(x, weight, counts).dtype == torch.bfloat16
    assert way(x, weight, counts).dtype == torch.float32


def test_no_shape_but_the_right_one():
    x, weight, counts = parts([2, 2])
    with pytest.raises(Exception, match="grouped_linear"):
        grouped_linear(x[:, :5], weight, counts)


def test_choices_are_sorted_by_expert_and_then_by_token():
    chosen = torch.tensor([[2, 0], [0, 3], [2, 0]])
    order, counts = by_expert(chosen, 5)
    assert counts.tolist() == [3, 0, 2, 1, 0]
    assert order.tolist() == [1, 2, 5, 0, 4, 3]
    assert (order // 2).tolist() == [0, 1, 2, 0, 2, 1]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_pytorch_s_grouped_product_in_bf16(counts, autocast):
    """The same products, asked for by name on a CPU; under autocast from float32, whose gradients are float32 again."""
    dtype = torch.float32 if autocast else torch.bfloat16
    x, weight = torch.randn(sum(counts), 16, dtype=dtype), torch.randn(len(counts), 8, 16, dtype=dtype)
    x, weight, counts = x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = grouped_linear(x, weight, counts, backend="vendor")
    assert y.dtype == torch.bfloat16
    truth = loop(x.double(), weight.double(), counts)
    torch.testing.assert_close(y.double(), truth, rtol=0.03, atol=0.03)
    seed = torch.randn_like(truth)
    found = torch.autograd.grad(y, (x, weight), seed.bfloat16())
    for one, other in zip(found, torch.autograd.grad(truth, (x, weight), seed), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other.double(), rtol=0.05, atol=0.05)


def test_what_pytorch_s_grouped_product_cannot_do_is_said():
    x, weight, counts = torch.randn(8, 6), torch.randn(2, 5, 6), torch.tensor([3, 5])
    with pytest.raises(UnsupportedError, match="is for bf16"):
        grouped_linear(x, weight, counts, backend="vendor")
    with pytest.raises(UnsupportedError, match="widths that 8 divides"):
        grouped_linear(x.bfloat16(), weight.bfloat16(), counts, backend="vendor")
