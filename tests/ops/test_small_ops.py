"""Norms, rotary positions, the chunked loss, and the choice of a backend."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from hybridlm.errors import UnsupportedError
from hybridlm.ops.cross_entropy import ahead, linear_cross_entropy
from hybridlm.ops.norm import gated_rms_norm, group_norm, l2_norm, layer_norm, rms_norm
from hybridlm.ops.rotary import rotary
from tests.infer.tape import NoLooking, Tape

X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_rms_norm_and_layer_norm_are_their_formulas():
    torch.testing.assert_close(rms_norm(X, W, 1e-3), F.rms_norm(X, (12,), W, 1e-3))
    torch.testing.assert_close(layer_norm(X, W, W + 1, 1e-3), F.layer_norm(X, (12,), W, W + 1, 1e-3))


@pytest.mark.parametrize("groups", [1, 3])
def test_the_gate_comes_before_the_norm_and_groups_are_normalised_apart(groups):
    z = X.flip(0)
    gated = X * z / (1 + torch.exp(-z))
    parts = [part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() for part in gated.chunk(groups, dim=-1)]
    torch.testing.assert_close(gated_rms_norm(X, z, W, 1e-5, groups), torch.cat(parts, -1) * W)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_is_that_of_one_position(groups):
    theirs = F.group_norm(X.flatten(0, 1), groups, W, W + 1, 1e-3).view_as(X)
    torch.testing.assert_close(group_norm(X, W, W + 1, 1e-3, groups), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_take_their_statistics_in_float32(dtype):
    x = (X * 300).to(dtype)  # squares overflow fp16
    w = W.to(dtype)
    for y in (rms_norm(x, w, 1e-5), layer_norm(x, w, w, 1e-5), group_norm(x, w, w, 1e-5, 3)):
        assert y.dtype == dtype
        assert y.isfinite().all()


def test_l2_norm_of_a_zero_is_zero_and_has_a_gradient():
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(l2_norm(x, 1e-6), x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt())
    zero = torch.zeros(5, requires_grad=True)
    assert torch.equal(l2_norm(zero, 1e-6), zero)
    (gradient,) = torch.autograd.grad(l2_norm(zero, 1e-6).sum(), zero)
    torch.testing.assert_close(gradient, torch.full((5,), 1e3))
    assert l2_norm(torch.ones(4, dtype=torch.bfloat16), 1e-6).dtype == torch.float32


def test_rotary_depends_on_differences_of_positions_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def score(i: int, j: int) -> float:
        return float((rotary(q, torch.tensor([[i]])) * rotary(k, torch.tensor([[j]]))).sum())

    assert score(7, 3) == pytest.approx(score(1_000_007, 1_000_003), rel=1e-9)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)
    assert torch.equal(rotary(q, torch.tensor([[0]])), q)


def test_rotary_turns_each_pair_by_its_own_frequency():
    x = torch.zeros(1, 1, 1, 6, dtype=torch.float64)
    x[..., :3] = 1
    y = rotary(x, torch.tensor([[5]]), theta=100.0)[0, 0, 0]
    angles = 5 * 100.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    torch.testing.assert_close(y, torch.cat([angles.cos(), angles.sin()]))


def test_rotary_keeps_float32_digits_at_position_a_million():
    x = torch.randn(1, 1, 1, 8, dtype=torch.float64)
    position = torch.tensor([[1_000_000]])
    torch.testing.assert_close(rotary(x.float(), position).double(), rotary(x, position), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["layer", "weight"])
@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits_at_once(chunk, head):
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (40,))
    targets[::3] = -100
    inputs = (x, weight)
    expected = F.cross_entropy(x @ weight.T, targets)
    loss = linear_cross_entropy(x, weight if head == "weight" else lambda x: x @ weight.T, targets, chunk)
    torch.testing.assert_close(loss, expected)
    expected = 3 * expected
    pairs = zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_that_nobody_wants_are_not_computed(frozen):
    tensors = [torch.randn(8, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)]
    tensors[frozen].requires_grad_(False)
    flags = [tensor.requires_grad for tensor in tensors]
    targets = torch.randint(0, 9, (8,))
    _, *gradients = torch.ops.hybridlm.linear_cross_entropy(*tensors, targets, 3, torch.float32, *flags, False)
    assert [gradient.numel() > 0 for gradient in gradients] == flags
    loss = linear_cross_entropy(*tensors, targets, 3)
    with torch.no_grad():
        assert loss == linear_cross_entropy(*tensors, targets, 3)
    wanted = tensors[1 - frozen]
    expected = torch.autograd.grad(F.cross_entropy(tensors[0] @ tensors[1].T, targets), wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)


def test_the_weight_s_gradient_is_summed_up_in_float32():
    """Under autocast each chunk's product is of bf16 numbers; in bf16 sums of many chunks would stop growing."""
    x, weight = torch.ones(4096, 4), torch.zeros(2, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, weight, torch.zeros(4096, dtype=torch.int64), chunk=4)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.tensor([[-0.5] * 4, [0.5] * 4]))


def test_a_loss_whose_gradients_are_there_refuses_to_be_derived_twice():
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(9, 6)
    loss = linear_cross_entropy(x, weight, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_rows_that_nothing_is_asked_of_are_not_read():
    """On a CPU: their logits are not computed, and what they hold reaches neither loss nor gradients."""
    x, weight = torch.randn(9, 4), torch.randn(7, 4, requires_grad=True)
    targets = torch.tensor([1, -100, 3, -100, -100, 0, 6, 2, -100])
    asked = targets != -100
    x[~asked] = torch.nan
    x.requires_grad_()
    loss = linear_cross_entropy(x, weight, targets, chunk=2)
    expected = F.cross_entropy(x[asked] @ weight.T, targets[asked])
    torch.testing.assert_close(loss, expected)
    dx, dweight = torch.autograd.grad(loss, (x, weight))
    true = torch.autograd.grad(expected, (x, weight))
    torch.testing.assert_close((dx, dweight), true)


def test_the_loss_of_a_weight_has_derivatives_taken_forward():
    x, weight, targets = torch.randn(8, 6).double(), torch.randn(9, 6).double(), torch.arange(8) - 1
    targets[0] = -100
    inputs, ways = (x, weight), (torch.randn_like(x), torch.randn_like(weight))
    expected = torch.func.jvp(lambda x, w: F.cross_entropy(x @ w.T, targets), inputs, ways)[1]
    with forward_ad.dual_level():
        loss = linear_cross_entropy(*map(forward_ad.make_dual, inputs, ways), targets, 3)
        torch.testing.assert_close(forward_ad.unpack_dual(loss).tangent, expected)


def test_the_loss_of_a_weight_keeps_the_contract_of_custom_ops():
    given = torch.randn(8, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True), torch.randint(0, 9, (8,))
    torch.library.opcheck(torch.ops.hybridlm.linear_cross_entropy, (*given, 3, torch.float32, True, True, False))


def test_a_cuda_graph_can_record_the_softmax_of_the_loss():
    """No number comes from the host."""
    logits, targets = torch.randn(8, 9), torch.arange(8)
    with torch.no_grad(), Tape(), NoLooking():
        ahead._softmax(logits, targets)


@pytest.mark.parametrize("head", ["layer", "weight"])
def test_a_loss_over_nothing_is_zero_and_so_are_its_gradients(head):
    x, layer = torch.randn(4, 6, requires_grad=True), torch.nn.Linear(6, 11, bias=False)
    loss = linear_cross_entropy(x, layer.weight if head == "weight" else layer, torch.full((4,), -100))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
