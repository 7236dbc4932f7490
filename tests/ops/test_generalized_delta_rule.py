"""The generalised delta rule against a loop over rows, heads and tokens in numpy, and flash-linear-attention's own."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.ops.generalized_delta_rule import generalized_delta_rule, generalized_delta_rule_flops
from hybridlm.ops.linear_attention import linear_attention
from tests.ops.common import assert_autocast_changes_nothing, assert_strides_do_not_matter, documents, error
from tests.oracles.fla_naive import naive

NAIVE = naive("generalized_delta_rule/dplr")
LENGTHS = [1, 2, 15, 16, 17, 70]
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def oracle(q, k, v, a, b, decay, state=None, document=None):
    """One row, one head, one token at a time, float64: eq. 17 of Peng et al. 2025, with matrices written out."""
    q, k, v, a, b, decay = (x.detach().double().numpy() for x in (q, k, v, a, b, decay))
    rows, t, heads, p = v.shape
    S = np.zeros((rows, heads, p, k.shape[-1])) if state is None else state.detach().double().numpy().copy()
    y = np.zeros_like(v)
    for row, head in np.ndindex(rows, heads):
        current = 0
        for i in range(t):
            at = (row, i, head)
            if document is not None and int(document[row, i]) != current:
                current, S[row, head] = int(document[row, i]), 0
            transition = np.diag(np.exp(decay[at])) + np.outer(a[at], b[at])
            S[row, head] = S[row, head] @ transition + np.outer(v[at], k[at])
            y[at] = S[row, head] @ q[at]
    return torch.from_numpy(y), torch.from_numpy(S)


def inputs(t, b=3, h=2, p=3, n=5, dtype=torch.float64, weak=0.61):
    """As RWKV-7 has them: a of length 1, b between 0 and -a, decays down to exp(-weak)."""
    q, k, a = (torch.randn(b, t, h, n, dtype=torch.float64) for _ in range(3))
    v, a = torch.randn(b, t, h, p, dtype=torch.float64), a / a.norm(dim=-1, keepdim=True)
    return [x.to(dtype) for x in (q, k, v, a, -a * torch.rand(b, t, h, n), -weak * torch.rand(b, t, h, n))]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, packed, dtype):
    args, state = inputs(t, dtype=dtype), torch.randn(3, 2, 3, 5, dtype=dtype)
    document = documents(3, t) if packed else None
    y, S = generalized_delta_rule(*args, state=state, document=document, chunk=16)
    true_y, true_S = oracle(*args, state, document)
    assert error(y, true_y) < LIMIT[dtype]
    assert error(S, true_S) < LIMIT[dtype]
    assert (y.dtype, S.dtype) == (dtype, dtype)


@pytest.mark.parametrize("chunk", [2, 7, 8, 32, 256])
def test_chunk_changes_nothing_but_speed(chunk):
    args, document = inputs(65), documents(3, 65)
    ours = generalized_delta_rule(*args, document=document, chunk=chunk)
    assert all(error(one, true) < 1e-12 for one, true in zip(ours, oracle(*args, None, document), strict=True))


def test_against_fla_naive():
    """Outputs, state and gradients of its recurrence, float32: (b, h, t, n), S transposed, q scaled. Worst: 4e-7."""
    args, state = inputs(50, dtype=torch.float32), torch.randn(3, 2, 3, 5)
    leaves = [x.requires_grad_() for x in (*args, state)]
    ours = generalized_delta_rule(*args, state=state)
    q, k, v, a, b, decay = (x.transpose(1, 2) for x in args)
    y, S = NAIVE.dplr_recurrence(q * 5**0.5, k, v, a, b, decay, initial_state=state.mT)
    weights = [torch.randn_like(x) for x in ours]
    theirs = (y.transpose(1, 2), S.mT)
    found, wanted = (
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(out, weights, strict=True)), leaves)
        for out in (ours, theirs)
    )
    for one, true in zip((*ours, *found), (*theirs, *wanted), strict=True):
        assert error(one, true.double()) < 1e-5


@pytest.mark.parametrize("i", range(6))
def test_exchanged_entries_are_seen_beside_fla_naive(i):
    args = inputs(50, dtype=torch.float32)
    q, k, v, a, b, decay = (x.transpose(1, 2) for x in args)
    true = NAIVE.dplr_recurrence(q * 5**0.5, k, v, a, b, decay)[0].transpose(1, 2)
    args[i] = args[i].flatten().roll(1).view_as(args[i])
    assert error(generalized_delta_rule(*args)[0], true.double()) > 1e-3


@pytest.mark.parametrize("t", [1, 40])
def test_without_what_is_asked_it_is_linear_attention(t):
    q, k, v, a, b, decay = inputs(t)
    document = documents(3, t)
    ours = generalized_delta_rule(q, k, v, 0 * a, b, decay, document=document)
    for one, true in zip(ours, linear_attention(q, k, v, decay, document=document), strict=True):
        assert error(one, true) < 1e-12


def test_a_full_learning_rate_replaces_what_was_there():
    """Section 3 of the paper: without decay and with a = -b = k of length 1, S k is the last v."""
    _, _, v, a, _, decay = inputs(30)
    y, S = generalized_delta_rule(-a, -a, v, a, -a, 0 * decay)
    torch.testing.assert_close(y, v)
    torch.testing.assert_close(torch.einsum("bhpn,bhn->bhp", S, -a[:, -1]), v[:, -1])


@pytest.mark.parametrize("cuts", [[1, 39], [8, 32], [9, 30, 1], [1, 2, 2, 3, 1, 31]])
def test_split(cuts):
    args, document = inputs(40), documents(3, 40)
    whole, end = generalized_delta_rule(*args, state=torch.ones(3, 2, 3, 5).double(), document=document, chunk=8)
    S, pieces, seen = torch.ones(3, 2, 3, 5).double(), [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [x[:, part] for x in args]
        y, S = generalized_delta_rule(*cut, state=S, document=document[:, part] - seen, chunk=8)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(S, end) < 1e-12


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed):
    args = [*inputs(t, b=2, p=2, n=3), torch.randn(2, 2, 2, 3).double()]
    document = documents(2, t) if packed else None

    def call(*args):
        y, S = generalized_delta_rule(*args[:-1], state=args[-1], document=document, chunk=4)
        return y.transpose(1, 2), S  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [x.requires_grad_() for x in args], fast_mode=True)


def test_float32_gradients_are_as_exact_as_the_outputs():
    args = inputs(130, dtype=torch.float32)

    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in args]
        y, S = generalized_delta_rule(*leaves)
        return torch.autograd.grad(y.square().mean() + S.square().mean(), leaves)

    for ours, true in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert error(ours, true) < 4 * LIMIT[torch.float32]


def test_documents_pass_no_gradient():
    args, state = [x.requires_grad_() for x in inputs(40)], torch.randn(3, 2, 3, 5).double().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, S = generalized_delta_rule(*args, state=state, document=document, chunk=8)
    *found, dstate = torch.autograd.grad(y[:, 20:].sum() + S.sum(), [*args, state])
    assert not dstate.any()
    assert not any(gradient[:, :20].any() for gradient in found)
    assert found[2][:, 20:].abs().min() > 0


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("mapped", range(6))
def test_vmap(t, mapped):
    """One argument with another axis in front: as in a stack of models that share data or weights."""
    args, other = inputs(t, b=2), inputs(t, b=2)[mapped]
    given = [torch.stack([x, other]) if i == mapped else x for i, x in enumerate(args)]
    dims = tuple(0 if i == mapped else None for i in range(6))

    def loss(*args):
        y, S = generalized_delta_rule(*args, document=documents(2, t), chunk=8)
        return y.square().sum() + S.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(6))), in_dims=dims)(*given)
    for i in range(2):
        alone = torch.func.grad(loss, argnums=tuple(range(6)))(
            *(x[i] if k == mapped else x for k, x in enumerate(given))
        )
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [1, 70])
def test_zeros_hold_the_state(t):
    q, k, v, a, b, decay = inputs(t, dtype=torch.float32)
    state = torch.randn(3, 2, 3, 5)
    _, S = generalized_delta_rule(q, 0 * k, v, 0 * a, b, 0 * decay, state=state)
    assert torch.equal(S, state)


@pytest.mark.parametrize("t", [1, 70])
def test_extremes_stay_finite(t):
    """Decays of -1e3 beside those of -1e-6, |v| = 1e4: sums that are short stay exact beside long ones."""
    q, k, v, a, b, decay = inputs(t, dtype=torch.float32)
    decay = torch.where(torch.rand_like(decay) < 0.5, -1e3, -1e-6)
    leaves = [x.requires_grad_() for x in (q, k, 1e4 * v.sign(), a, b, decay)]
    y, S = generalized_delta_rule(*leaves, document=documents(3, t))
    grads = torch.autograd.grad(y.sum() + S.sum(), leaves)
    assert all(x.isfinite().all() for x in (y, S, *grads))
    assert error(y, oracle(*leaves, None, documents(3, t))[0]) < LIMIT[torch.float32]


def test_bf16_keeps_a_float32_state():
    args = inputs(130, dtype=torch.bfloat16)
    y, S = generalized_delta_rule(*args)
    true_y, true_S = oracle(*args)
    assert (y.dtype, S.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, true_y) < 2 * 1.66e-3
    assert error(S, true_S) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 70])
def test_autocast_changes_nothing(t):
    assert_autocast_changes_nothing(generalized_delta_rule, inputs(t, dtype=torch.float32))


def test_strides_do_not_matter_and_inputs_stay():
    assert_strides_do_not_matter(generalized_delta_rule, inputs(70))


@pytest.mark.parametrize("t", LENGTHS)
def test_matmul_flops_are_counted(t):
    args = inputs(t, b=1)
    with FlopCounterMode(display=False) as counter:
        generalized_delta_rule(*args, chunk=16)
    assert generalized_delta_rule_flops(t, 2, 3, 5, 16)[0] == counter.get_total_flops()


def test_scan_flops_by_hand():
    """Two heads, P = 3, N = 5, two chunks of 16 with four cuts."""
    cuts, products, ends, substitution, sums, passed_on = 4 * 3 * 5, 4 * 5, 4 * 5, 15 * (3 + 5), 3 * 3, 3 * 3 * 5
    by_hand = 2 * (32 * (cuts + products + ends + substitution + sums) + 2 * passed_on)
    assert generalized_delta_rule_flops(20, 2, 3, 5, 16)[1] == by_hand
    assert generalized_delta_rule_flops(1, 2, 3, 5, 16)[1] == 2 * 5 * 3 * 5
