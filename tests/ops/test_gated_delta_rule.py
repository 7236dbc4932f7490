"""The gated delta rule against a loop over rows, heads and tokens in numpy, and against flash-linear-attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_flops
from tests.ops.common import Arithmetic, assert_autocast_changes_nothing, documents, error
from tests.oracles.fla_naive import naive

LENGTHS = [1, 2, 63, 64, 65, 130]
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
WITH = {"gated": True, "ungated": False}


def oracle(q, k, v, decay, beta, state=None, document=None):
    """One row, one head, one token at a time, float64: S = e^decay S (I - beta k k^T) + beta v k^T."""
    q, k, v, beta = (x.detach().double().numpy() for x in (q, k, v, beta))
    b, t, h, p = v.shape
    S = np.zeros((b, h, p, k.shape[-1])) if state is None else state.detach().double().numpy().copy()
    y = np.zeros_like(v)
    for row, head in np.ndindex(b, h):
        group, current = head // (h // k.shape[2]), 0
        for i in range(t):
            if document is not None and int(document[row, i]) != current:
                current, S[row, head] = int(document[row, i]), 0
            key, rate = k[row, i, group], beta[row, i, head]
            fade = 1 if decay is None else np.exp(decay[row, i, head].detach().double().numpy())
            kept = np.eye(len(key)) - rate * np.outer(key, key)
            S[row, head] = fade * S[row, head] @ kept + rate * np.outer(v[row, i, head], key)
            y[row, i, head] = S[row, head] @ q[row, i, group]
    return torch.from_numpy(y), torch.from_numpy(S)


def inputs(t, gated=True, b=3, h=4, p=3, g=2, n=5, most=1.0, dtype=torch.float64):
    """Keys of length 1, beta from 0 to `most`."""
    q, k, v = torch.randn(b, t, g, n), F.normalize(torch.randn(b, t, g, n), dim=-1), torch.randn(b, t, h, p)
    decay = -torch.exp(torch.empty(b, t, h).uniform_(-7, 1)) if gated else None
    return [x if x is None else x.to(dtype) for x in (q, k, v, decay, most * torch.rand(b, t, h))]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("gated", WITH.values(), ids=WITH)
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, gated, g, packed, dtype):
    args = inputs(t, gated, g=g, dtype=dtype)
    state = torch.randn(3, 4, 3, 5, dtype=dtype)
    document = documents(3, t) if packed else None
    y, S = gated_delta_rule(*args, state=state, document=document)
    true_y, true_S = oracle(*args, state, document)
    assert error(y, true_y) < LIMIT[dtype]
    assert error(S, true_S) < LIMIT[dtype]
    assert (y.dtype, S.dtype) == (dtype, dtype)


@pytest.mark.parametrize("t", [65, 300])
@pytest.mark.parametrize("dtype", LIMIT)
def test_negative_eigenvalues(t, dtype):
    """beta up to 2: what a key holds may change its sign, and nothing grows."""
    args = inputs(t, False, most=2.0, dtype=dtype)
    for ours, true in zip(gated_delta_rule(*args), oracle(*args), strict=True):
        assert error(ours, true) < LIMIT[dtype]


def test_what_a_key_holds_is_replaced():
    """beta = 1: after a token its key gives its value, whatever was written before."""
    _, k, v, _, beta = inputs(65, False)
    k = F.normalize(k, dim=-1)
    y, _ = gated_delta_rule(k, k, v, None, torch.ones_like(beta), chunk=16)
    torch.testing.assert_close(y, v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [2, 7, 9, 32, 64, 256])
def test_chunk_changes_nothing_but_speed(chunk):
    args, document = inputs(65), documents(3, 65)
    found = gated_delta_rule(*args, document=document, chunk=chunk)
    for ours, true in zip(found, oracle(*args, None, document), strict=True):
        assert error(ours, true) < 1e-12


@pytest.mark.parametrize("cuts", [[1, 39], [8, 32], [9, 30, 1], [1, 2, 2, 3, 1, 31]])
def test_split(cuts):
    args, document = inputs(40), documents(3, 40)
    whole, end = gated_delta_rule(*args, state=torch.ones(3, 4, 3, 5).double(), document=document, chunk=8)
    S, pieces, seen = torch.ones(3, 4, 3, 5).double(), [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [x[:, part] for x in args]
        y, S = gated_delta_rule(*cut, state=S, document=document[:, part] - seen, chunk=8)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(S, end) < 1e-12


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("gated", WITH.values(), ids=WITH)
def test_gradients(t, packed, g, gated):
    args = [*inputs(t, gated, b=2, p=2, g=g, n=3), torch.randn(2, 4, 2, 3).double()]
    document = documents(2, t) if packed else None

    def call(*args):
        y, S = gated_delta_rule(*args[:-1], state=args[-1], document=document, chunk=4)
        return y.transpose(1, 2), S  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [x if x is None else x.requires_grad_() for x in args], fast_mode=True)


def test_float32_gradients_are_as_exact_as_the_outputs():
    args = inputs(130, dtype=torch.float32)

    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in args]
        y, S = gated_delta_rule(*leaves)
        return torch.autograd.grad(y.square().mean() + S.square().mean(), leaves)

    for ours, true in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert error(ours, true) < 4 * LIMIT[torch.float32]


def test_documents_pass_no_gradient():
    args = [x.requires_grad_() for x in inputs(40)]
    state = torch.randn(3, 4, 3, 5).double().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, S = gated_delta_rule(*args, state=state, document=document, chunk=8)
    dv, dstate = torch.autograd.grad(y[:, 20:].sum() + S.sum(), [args[2], state])
    assert torch.equal(dstate, torch.zeros_like(dstate))
    assert torch.equal(dv[:, :20], torch.zeros_like(dv[:, :20]))
    assert dv[:, 20:].abs().min() > 0


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("mapped", range(5))
def test_vmap(t, mapped):
    """One argument with another axis in front: as in a stack of models that share data or weights."""
    args, other = inputs(t, b=2), inputs(t, b=2)
    many = torch.stack([args[mapped], other[mapped]])

    def loss(*args):
        y, S = gated_delta_rule(*args, document=documents(2, t), chunk=8)
        return y.square().sum() + S.square().sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(5)))
    dims = tuple(0 if i == mapped else None for i in range(5))
    ours = torch.func.vmap(gradient, in_dims=dims)(*args[:mapped], many, *args[mapped + 1 :])
    for i in range(2):
        alone = gradient(*args[:mapped], many[i], *args[mapped + 1 :])
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [1, 70])
def test_nothing_written_and_no_decay_hold_the_state(t):
    q, k, v, decay, beta = inputs(t, dtype=torch.float32)
    state = torch.randn(3, 4, 3, 5)
    _, S = gated_delta_rule(q, k, v, decay * 0, beta * 0, state=state)
    assert torch.equal(S, state)


@pytest.mark.parametrize("t", [1, 70])
def test_extremes_stay_finite(t):
    """Decays of -1e3 on half of the tokens, -1e-6 on the others, |v| = 1e4, keys of length 0 among them."""
    q, k, v, decay, beta = inputs(t, dtype=torch.float32)
    v, decay = 1e4 * v.sign(), torch.where(torch.rand_like(decay) < 0.5, -1e3, -1e-6)
    k = k * (torch.rand(3, t, 1, 1) < 0.8)
    leaves = [x.requires_grad_() for x in (q, k, v, decay, beta)]
    y, S = gated_delta_rule(*leaves, document=documents(3, t))
    grads = torch.autograd.grad(y.sum() + S.sum(), leaves)
    assert all(x.isfinite().all() for x in (y, S, *grads))
    assert error(y, oracle(*leaves, None, documents(3, t))[0]) < LIMIT[torch.float32]


def test_one_key_again_and_again():
    """The worst case of the triangular system: all keys equal, beta = 2, over more than one chunk."""
    q, k, v, _, beta = inputs(130, False, dtype=torch.float32)
    args = (q, k[:, :1].expand_as(k), v, None, torch.full_like(beta, 2.0))
    for ours, true in zip(gated_delta_rule(*args), oracle(*args), strict=True):
        assert error(ours, true) < 5 * LIMIT[torch.float32]


def test_bf16_keeps_a_float32_state():
    args = inputs(130, dtype=torch.bfloat16)
    y, S = gated_delta_rule(*args)
    true_y, true_S = oracle(*args)
    assert (y.dtype, S.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, true_y) < 2 * 1.66e-3
    assert error(S, true_S) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 70])
def test_autocast_changes_nothing(t):
    assert_autocast_changes_nothing(gated_delta_rule, inputs(t, dtype=torch.float32))


@pytest.mark.parametrize("t", [1, 2, 33, 64, 130])
def test_flops_are_what_runs(t):
    """All matrix products; products and sums of one token, as the triangular system is solved by another name."""
    args = inputs(t, b=1)
    with torch.no_grad(), FlopCounterMode(display=False) as products, Arithmetic() as rest:
        gated_delta_rule(*args, state=torch.zeros(1, 4, 3, 5).double(), chunk=32)
    matmul, scan = gated_delta_rule_flops(t, 4, 3, 2, 5, 32)
    assert products.get_total_flops() == matmul
    assert rest.count == scan or t > 1


def test_against_flash_linear_attention():
    """Outputs, final state and every gradient in float32; their state is (b, h, n, p). Worst error seen: 5e-7."""
    leaves = [*inputs(70, g=4, dtype=torch.float32), torch.randn(3, 4, 3, 5)]
    leaves = [x.requires_grad_() for x in leaves]

    def theirs(q, k, v, decay, beta, S):
        recurrent = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
        y, S = recurrent(q, k, v, beta, decay, scale=1.0, initial_state=S.mT, output_final_state=True)
        return y, S.mT

    def graded(call):
        y, S = call(*leaves)
        return y, S, *torch.autograd.grad(y.square().sum() + S.square().sum(), leaves)

    ours = graded(lambda *args: gated_delta_rule(*args[:-1], state=args[-1]))
    for one, true in zip(ours, graded(theirs), strict=True):
        assert error(one, true.double()) < 1e-5
