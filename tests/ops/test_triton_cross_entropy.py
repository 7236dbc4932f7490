"""The kernel that turns logits into the gradient of their cross entropy, in Triton's interpreter or on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from hybridlm.ops.cross_entropy import linear_cross_entropy
from hybridlm.ops.cross_entropy.triton import softmax_gradient_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (5, 7), (3, 4096), (2, 4097), (2, 9000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_softmax_less_the_target(rows, vocab, dtype):
    logits = (5 * torch.randn(rows, vocab)).to(DEVICE, dtype)
    targets = torch.randint(0, vocab, (rows,), device=DEVICE)
    targets[1::3] = -100
    leaf = logits.double().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss = softmax_gradient_(logits, targets)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


def test_logits_that_are_huge_or_minus_infinity_are_taken_as_they_are():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 2.0, 2.0]], device=DEVICE)
    loss = softmax_gradient_(logits, torch.tensor([0, 1], device=DEVICE))
    torch.testing.assert_close(loss.cpu(), torch.tensor(2.0).log())
    torch.testing.assert_close(logits.cpu(), torch.tensor([[0.0, 0, 0], [0, -0.5, 0.5]]))


def test_targets_may_lie_apart():
    """As those of the last token of every row do."""
    x, weight = torch.randn(4, 8, device=DEVICE), torch.randn(9, 8, device=DEVICE)
    targets = torch.randint(0, 9, (4, 3), device=DEVICE)[:, -1:].flatten()
    assert targets.stride() == (3,)
    loss = linear_cross_entropy(x, weight, targets, 3, "triton")
    torch.testing.assert_close(loss, F.cross_entropy(x @ weight.mT, targets))
