"""softplus where PyTorch's own gives up digits."""

import math

import torch

from hybridlm.ops.steps import softplus


def test_exact_in_float64():
    for x in (-700.0, -40.0, -1.0, 0.0, 5.0, 20.5, 27.0, 39.9, 40.1, 800.0):
        true = max(x, 0.0) + math.log1p(math.exp(-abs(x)))
        got = softplus(torch.tensor(x, dtype=torch.float64)).item()
        assert abs(got - true) <= 1e-15 * true, x


def test_finite_in_float32_with_its_gradient():
    x = torch.tensor([-200.0, 0.0, 30.0, 39.0, 41.0, 1e30], requires_grad=True)
    y = softplus(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert torch.allclose(dx, torch.sigmoid(x.detach()), rtol=1e-6, atol=0)
