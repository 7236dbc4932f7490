"""softplus where PyTorch's own gives up digits."""

import math

import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.usefixtures("compiler")
def test_compiled_its_gradient_may_come_in_with_strides_of_its_own():
    def loss(x, weight, up):
        return (softplus(F.linear(x, weight)).mT.contiguous() * up).sum()

    x, weight, up = torch.randn(2, 23, 5), torch.randn(4, 5, requires_grad=True), torch.randn(2, 4, 23)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,), (wanted,) = (torch.autograd.grad(f(x, weight, up), weight) for f in (compiled, loss))
    torch.testing.assert_close(found, wanted)


def test_exported_it_is_one_op():
    class Softplus(torch.nn.Module):
        def forward(self, x):
            return softplus(x)

    program = torch.export.export(Softplus(), (torch.randn(3),), strict=False)
    assert torch.ops.aten.softplus.default in [node.target for node in program.graph.nodes]
