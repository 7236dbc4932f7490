"""SSD against a loop over rows, heads and tokens in numpy, written from eq. 2 of the paper."""

import numpy as np
import pytest
import torch

from hybridlm.ops.ssd import ssd
from tests.ops.common import assert_autocast_changes_nothing, assert_strides_do_not_matter, documents, error

LENGTHS = [1, 2, 63, 64, 65, 130]
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def oracle(x, dt, A, B, C, D, state=None, document=None):
    """One row, one head, one token at a time, float64."""
    x, dt, A, B, C, D = (v.detach().double().numpy() for v in (x, dt, A, B, C, D))
    b, t, h, p = x.shape
    H = np.zeros((b, h, p, B.shape[-1])) if state is None else state.detach().double().numpy().copy()
    y = np.zeros_like(x)
    for row, head in np.ndindex(b, h):
        group, current = head // (h // B.shape[2]), 0
        for i in range(t):
            if document is not None and int(document[row, i]) != current:
                current, H[row, head] = int(document[row, i]), 0
            write = dt[row, i, head] * np.outer(x[row, i, head], B[row, i, group])
            H[row, head] = np.exp(dt[row, i, head] * A[head]) * H[row, head] + write
            y[row, i, head] = H[row, head] @ C[row, i, group] + D[head] * x[row, i, head]
    return torch.from_numpy(y), torch.from_numpy(H)


def inputs(t, b=3, h=4, p=3, g=2, n=5, dtype=torch.float64):
    x, B, C = torch.randn(b, t, h, p), torch.randn(b, t, g, n), torch.randn(b, t, g, n)
    dt = torch.exp(torch.empty(b, t, h).uniform_(-7, 0))
    return [v.to(dtype) for v in (x, dt, -16 * torch.rand(h), B, C, torch.randn(h))]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, g, packed, dtype):
    args = inputs(t, g=g, dtype=dtype)
    state = torch.randn(3, 4, 3, 5, dtype=dtype)
    document = documents(3, t) if packed else None
    y, H = ssd(*args, state=state, document=document)
    true_y, true_H = oracle(*args, state, document)
    assert error(y, true_y) < LIMIT[dtype]
    assert error(H, true_H) < LIMIT[dtype]
    assert (y.dtype, H.dtype) == (dtype, dtype)


@pytest.mark.parametrize("chunk", [2, 7, 32, 64, 256])
def test_chunk_changes_nothing_but_speed(chunk):
    args, document = inputs(65), documents(3, 65)
    for ours, true in zip(ssd(*args, document=document, chunk=chunk), oracle(*args, None, document), strict=True):
        assert error(ours, true) < 1e-12


def test_without_skip_weights():
    x, dt, A, B, C, D = inputs(20)
    assert torch.equal(ssd(x, dt, A, B, C, None)[0], ssd(x, dt, A, B, C, D * 0)[0])


@pytest.mark.parametrize("cuts", [[1, 39], [8, 32], [9, 30, 1], [1, 2, 2, 3, 1, 31]])
def test_split(cuts):
    args, document = inputs(40), documents(3, 40)
    whole, end = ssd(*args, state=torch.ones(3, 4, 3, 5).double(), document=document, chunk=8)
    H, pieces, seen = torch.ones(3, 4, 3, 5).double(), [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [v[:, part] if v.ndim > 1 else v for v in args]
        y, H = ssd(*cut, state=H, document=document[:, part] - seen, chunk=8)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(H, end) < 1e-12


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("g", [1, 2, 4])
def test_gradients(t, packed, g):
    args = [*inputs(t, b=2, p=2, g=g, n=3), torch.randn(2, 4, 2, 3).double()]
    document = documents(2, t) if packed else None

    def call(*args):
        y, H = ssd(*args[:-1], state=args[-1], document=document, chunk=4)
        return y.transpose(1, 2), H  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [v.requires_grad_() for v in args], fast_mode=True)


def test_float32_gradients_are_as_exact_as_the_outputs():
    args = inputs(130, dtype=torch.float32)

    def gradients(dtype):
        leaves = [v.to(dtype).requires_grad_() for v in args]
        y, H = ssd(*leaves)
        return torch.autograd.grad(y.square().mean() + H.square().mean(), leaves)

    for ours, true in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert error(ours, true) < 4 * LIMIT[torch.float32]


def test_documents_pass_no_gradient():
    args = [v.requires_grad_() for v in inputs(40)]
    state = torch.randn(3, 4, 3, 5).double().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, H = ssd(*args, state=state, document=document, chunk=8)
    dx, dstate = torch.autograd.grad(y[:, 20:].sum() + H.sum(), [args[0], state])
    assert torch.equal(dstate, torch.zeros_like(dstate))
    assert torch.equal(dx[:, :20], torch.zeros_like(dx[:, :20]))
    assert dx[:, 20:].abs().min() > 0


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("mapped", range(6))
def test_vmap(t, mapped):
    """One argument with another axis in front: as in a stack of models that share data or weights."""
    args, many = inputs(t, b=2), [torch.stack(pair) for pair in zip(inputs(t, b=2), inputs(t, b=2), strict=True)]
    given = [many[i] if i == mapped else args[i] for i in range(6)]
    dims = tuple(0 if i == mapped else None for i in range(6))

    def loss(*args):
        y, H = ssd(*args, document=documents(2, t), chunk=8)
        return y.square().sum() + H.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(6))), in_dims=dims)(*given)
    for i in range(2):
        alone = torch.func.grad(loss, argnums=tuple(range(6)))(
            *(v[i] if k == mapped else v for k, v in enumerate(given))
        )
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [1, 70])
def test_step_zero_holds_the_state(t):
    x, dt, A, B, C, D = inputs(t, dtype=torch.float32)
    state = torch.randn(3, 4, 3, 5)
    _, H = ssd(x, torch.zeros_like(dt), A, B, C, D, state=state)
    assert torch.equal(H, state)


@pytest.mark.parametrize("t", [1, 70])
def test_extremes_stay_finite(t):
    """dt A = -1e3 on half of the tokens, -1e-6 on the others, |x| = 1e4: short sums beside long ones stay exact."""
    x, dt, A, B, C, D = inputs(t, dtype=torch.float32)
    x, dt = 1e4 * x.sign(), torch.where(torch.rand_like(dt) < 0.5, 1e3, 1e-6)
    leaves = [v.requires_grad_() for v in (x, dt, -torch.ones_like(A), B, C, D)]
    y, H = ssd(*leaves, document=documents(3, t))
    grads = torch.autograd.grad(y.sum() + H.sum(), leaves)
    assert all(v.isfinite().all() for v in (y, H, *grads))
    assert error(y, oracle(*leaves, None, documents(3, t))[0]) < LIMIT[torch.float32]


def test_a_short_memory_next_to_a_long_one():
    """After a token with dt A = -1e4 small decays keep their digits: a difference of running sums would lose them."""
    x, dt, A, B, C, D = inputs(64, dtype=torch.float32)
    dt = torch.full_like(dt, 0.01)
    dt[:, 5] = 1e4
    args = (x, dt, -torch.ones_like(A), B, C, D * 0)
    y, _ = ssd(*args)
    true, _ = oracle(*args)
    assert error(y[:, 6:], true[:, 6:]) < LIMIT[torch.float32]


def test_long_memory():
    """A = -1, dt = 1e-3, 16k tokens."""
    one = torch.ones(1, 16384, 1, 1)
    _, H = ssd(one, torch.full((1, 16384, 1), 1e-3), -torch.ones(1), one, one, None)
    decay = np.exp(np.float64(np.float32(1e-3)) * -1)
    true = np.float64(np.float32(1e-3)) * (1 - decay**16384) / (1 - decay)
    assert abs(H.item() / true - 1) < 1e-4


def test_bf16_keeps_a_float32_state():
    args = inputs(130, dtype=torch.bfloat16)
    y, H = ssd(*args)
    true_y, true_H = oracle(*args)
    assert (y.dtype, H.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, true_y) < 2 * 1.66e-3
    assert error(H, true_H) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 70])
def test_autocast_changes_nothing(t):
    assert_autocast_changes_nothing(ssd, inputs(t, dtype=torch.float32))


def test_strides_do_not_matter_and_inputs_stay():
    assert_strides_do_not_matter(ssd, inputs(70))
