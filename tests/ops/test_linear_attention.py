"""Linear attention against a loop over rows, heads and tokens in numpy, and against flash-linear-attention."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.ops.linear_attention import linear_attention, linear_attention_flops
from tests.ops.common import Arithmetic, assert_autocast_changes_nothing, documents, error
from tests.oracles.fla_naive import naive

LENGTHS = [1, 2, 63, 64, 65, 130]
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
KINDS = ["none", "head", "channel"]


def oracle(q, k, v, decay, state=None, document=None):
    """One row, one head, one token at a time, float64."""
    q, k, v = (x.detach().double().numpy() for x in (q, k, v))
    b, t, h, p = v.shape
    S = np.zeros((b, h, p, k.shape[-1])) if state is None else state.detach().double().numpy().copy()
    y = np.zeros_like(v)
    for row, head in np.ndindex(b, h):
        group, current = head // (h // k.shape[2]), 0
        for i in range(t):
            if document is not None and int(document[row, i]) != current:
                current, S[row, head] = int(document[row, i]), 0
            if decay is not None:  # a number of the head, or a row of numbers of the group, one a column of S
                mine = decay[row, i, head] if decay.ndim == 3 else decay[row, i, group]
                S[row, head] *= np.exp(mine.detach().double().numpy())
            S[row, head] += np.outer(v[row, i, head], k[row, i, group])
            y[row, i, head] = S[row, head] @ q[row, i, group]
    return torch.from_numpy(y), torch.from_numpy(S)


def inputs(t, kind="head", b=3, h=4, p=3, g=2, n=5, dtype=torch.float64):
    q, k, v = torch.randn(b, t, g, n), torch.randn(b, t, g, n), torch.randn(b, t, h, p)
    shape = {"head": (b, t, h), "channel": (b, t, g, n)}
    decay = None if kind == "none" else -torch.exp(torch.empty(shape[kind]).uniform_(-7, 2))
    return [x if x is None else x.to(dtype) for x in (q, k, v, decay)]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, kind, g, packed, dtype):
    args = inputs(t, kind, g=g, dtype=dtype)
    state = torch.randn(3, 4, 3, 5, dtype=dtype)
    document = documents(3, t) if packed else None
    y, S = linear_attention(*args, state=state, document=document)
    true_y, true_S = oracle(*args, state, document)
    assert error(y, true_y) < LIMIT[dtype]
    assert error(S, true_S) < LIMIT[dtype]
    assert (y.dtype, S.dtype) == (dtype, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [2, 7, 9, 32, 64, 256])
def test_chunk_changes_nothing_but_speed(chunk, kind):
    args, document = inputs(65, kind), documents(3, 65)
    found = linear_attention(*args, document=document, chunk=chunk)
    for ours, true in zip(found, oracle(*args, None, document), strict=True):
        assert error(ours, true) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[1, 39], [8, 32], [9, 30, 1], [1, 2, 2, 3, 1, 31]])
def test_split(cuts, kind):
    args, document = inputs(40, kind), documents(3, 40)
    whole, end = linear_attention(*args, state=torch.ones(3, 4, 3, 5).double(), document=document, chunk=8)
    S, pieces, seen = torch.ones(3, 4, 3, 5).double(), [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [x if x is None else x[:, part] for x in args]
        y, S = linear_attention(*cut, state=S, document=document[:, part] - seen, chunk=8)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(S, end) < 1e-12


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(t, packed, g, kind):
    args = [*inputs(t, kind, b=2, p=2, g=g, n=3), torch.randn(2, 4, 2, 3).double()]
    document = documents(2, t) if packed else None

    def call(*args):
        y, S = linear_attention(*args[:-1], state=args[-1], document=document, chunk=4)
        return y.transpose(1, 2), S  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [x if x is None else x.requires_grad_() for x in args], fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_pass_no_gradient(kind):
    args = [x if x is None else x.requires_grad_() for x in inputs(40, kind)]
    state = torch.randn(3, 4, 3, 5).double().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, S = linear_attention(*args, state=state, document=document, chunk=8)
    dv, dstate = torch.autograd.grad(y[:, 20:].sum() + S.sum(), [args[2], state])
    assert torch.equal(dstate, torch.zeros_like(dstate))
    assert torch.equal(dv[:, :20], torch.zeros_like(dv[:, :20]))
    assert dv[:, 20:].abs().min() > 0


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapped", range(4))
def test_vmap(t, kind, mapped):
    """One argument with another axis in front: as in a stack of models that share data or weights."""
    args, other = inputs(t, kind, b=2), inputs(t, kind, b=2)
    given = [x for x in args if x is not None]
    if mapped >= len(given):
        return
    many = torch.stack([given[mapped], other[mapped]])

    def loss(*args):
        y, S = linear_attention(*args, *[None] * (4 - len(args)), document=documents(2, t), chunk=8)
        return y.square().sum() + S.square().sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(len(given))))
    dims = tuple(0 if i == mapped else None for i in range(len(given)))
    ours = torch.func.vmap(gradient, in_dims=dims)(*given[:mapped], many, *given[mapped + 1 :])
    for i in range(2):
        alone = gradient(*given[:mapped], many[i], *given[mapped + 1 :])
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 70])
def test_nothing_written_and_no_decay_hold_the_state(t, kind):
    q, k, v, decay = inputs(t, kind, dtype=torch.float32)
    state = torch.randn(3, 4, 3, 5)
    _, S = linear_attention(q, k * 0, v, None if decay is None else decay * 0, state=state)
    assert torch.equal(S, state)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("t", [1, 70])
def test_extremes_stay_finite(t, kind):
    """Decays of -1e3 on half of the tokens, -1e-6 on the others, |v| = 1e4: short sums beside long ones stay exact."""
    q, k, v, decay = inputs(t, kind, dtype=torch.float32)
    v, decay = 1e4 * v.sign(), torch.where(torch.rand_like(decay) < 0.5, -1e3, -1e-6)
    leaves = [x.requires_grad_() for x in (q, k, v, decay)]
    y, S = linear_attention(*leaves, document=documents(3, t))
    grads = torch.autograd.grad(y.sum() + S.sum(), leaves)
    assert all(x.isfinite().all() for x in (y, S, *grads))
    assert error(y, oracle(*leaves, None, documents(3, t))[0]) < LIMIT[torch.float32]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_short_memory_next_to_a_long_one(kind):
    """After a decay of -1e4 small decays keep their digits: a difference of running sums would lose them."""
    q, k, v, decay = inputs(64, kind, dtype=torch.float32)
    decay = torch.full_like(decay, -0.01)
    decay[:, 5] = -1e4
    y, _ = linear_attention(q, k, v, decay)
    true, _ = oracle(q, k, v, decay)
    assert error(y[:, 6:], true[:, 6:]) < LIMIT[torch.float32]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_decay_is_forgotten_in_place(kind):
    """A decay of -inf, as the strongest there is, empties the state and leaves no NaN in any gradient."""
    q, k, v, decay = inputs(40, kind)
    decay[:, 13] = -torch.inf
    leaves = [x.requires_grad_() for x in (q, k, v, decay)]
    y, S = linear_attention(*leaves, chunk=16)
    alone, last = linear_attention(*(x[:, 13:] for x in leaves), chunk=16)
    assert error(y[:, 13:], alone) < 1e-12
    assert error(S, last) < 1e-12
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum() + S.sum(), leaves))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_long_memory(kind):
    """A decay of -1e-3 over 16k tokens."""
    one = torch.ones(1, 16384, 1, 1)
    decay = torch.full((1, 16384, 1) if kind == "head" else (1, 16384, 1, 1), -1e-3)
    _, S = linear_attention(one, one, one, decay)
    rate = np.exp(np.float64(np.float32(-1e-3)))
    assert abs(S.item() / ((1 - rate**16384) / (1 - rate)) - 1) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_keeps_a_float32_state(kind):
    args = inputs(130, kind, dtype=torch.bfloat16)
    y, S = linear_attention(*args)
    true_y, true_S = oracle(*args)
    assert (y.dtype, S.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, true_y) < 2 * 1.66e-3
    assert error(S, true_S) < LIMIT[torch.float32]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 70])
def test_autocast_changes_nothing(t, kind):
    assert_autocast_changes_nothing(linear_attention, inputs(t, kind, dtype=torch.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 2, 33, 64, 130])
def test_flops_are_what_runs(t, kind):
    """Matrix products of all kinds; products and sums where no running sum is among them, which has another name."""
    args = inputs(t, kind, b=1)
    with torch.no_grad(), FlopCounterMode(display=False) as products, Arithmetic() as rest:
        linear_attention(*args, state=torch.zeros(1, 4, 3, 5).double(), chunk=32)
    matmul, scan = linear_attention_flops(t, 4, 3, 2, 5, 32, by_channel=kind == "channel")
    assert products.get_total_flops() == matmul
    assert rest.count == scan or (t > 1 and kind != "channel")


# -------------------------------------------------------------------------------------------- flash-linear-attention
THEIRS = {
    "none": lambda q, k, v, decay, S: naive("linear_attn").naive_recurrent_linear_attn(q, k, v, 1.0, S, True),
    "head": lambda q, k, v, decay, S: naive("simple_gla").naive_recurrent_simple_gla(q, k, v, decay, 1.0, S),
    "channel": lambda q, k, v, decay, S: naive("gla").naive_recurrent_gla(q * q.shape[-1] ** 0.5, k, v, decay, S, True),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_against_flash_linear_attention(kind):
    """Outputs, final state and every gradient in float32; their state is (b, h, n, p). Worst error seen: 5e-7."""
    leaves = [x for x in inputs(70, kind, g=4, dtype=torch.float32) if x is not None]
    leaves = [x.requires_grad_() for x in (*leaves, torch.randn(3, 4, 3, 5))]

    def graded(call):
        *args, S = leaves
        y, S = call(*args, *[None] * (4 - len(args)), S)
        return y, S, *torch.autograd.grad(y.square().sum() + S.square().sum(), leaves)

    ours = graded(lambda *args: linear_attention(*args[:-1], state=args[-1]))
    y, S, *grads = graded(lambda *args: THEIRS[kind](*args[:-1], args[-1].mT))
    for one, true in zip(ours, (y, S.mT, *grads), strict=True):
        assert error(one, true.double()) < 1e-5
