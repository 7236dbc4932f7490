"""A weight beside every row: the same products, and gradients in two steps where torch.compile is."""

import pytest
import torch

from hybridlm.ops import spread as module
from hybridlm.ops.spread import spread


@pytest.mark.parametrize("t", [1, 16, 50])
def test_the_gradient_is_the_sum_over_rows(t, monkeypatch):
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, t, 6, dtype=torch.float64)
    assert spread(weight, x) is weight
    monkeypatch.setattr(module.torch.compiler, "is_compiling", lambda: True)
    wide = spread(weight, x)
    assert torch.equal(wide, weight.expand(3, t, 6))
    (gradient,) = torch.autograd.grad((x * wide).sum(), weight)
    torch.testing.assert_close(gradient, x.sum((0, 1)))


@pytest.mark.parametrize("shape", [(6,), (50, 6)])
def test_few_rows_stay_as_they_are(shape, monkeypatch):
    weight = torch.randn(6)
    monkeypatch.setattr(module.torch.compiler, "is_compiling", lambda: True)
    assert spread(weight, torch.randn(shape)) is weight
    assert spread(weight, torch.randn(2, *shape, device="meta")) is weight


def test_torch_compile_traces_it():
    def loss(weight, x):
        return (x * spread(weight, x)).square().sum()

    weight, x = torch.randn(6, requires_grad=True), torch.randn(2, 50, 6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,), (wanted,) = (torch.autograd.grad(f(weight, x), weight) for f in (compiled, loss))
    torch.testing.assert_close(found, wanted)
