"""The selective scan against a loop over rows and tokens in numpy, written from eq. 2 of the paper."""

import numpy as np
import pytest
import torch

from hybridlm.errors import SpecError
from hybridlm.ops.selective_scan import reference, selective_scan
from tests.ops.common import assert_autocast_changes_nothing, assert_strides_do_not_matter, documents, error

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 130]
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def oracle(x, dt, A, B, C, D, state=None, document=None, zoh=False):
    """One row, one token at a time, float64. zoh: the integral of exp(s A) B over the step, in closed form."""
    x, dt, A, B, C, D = (v.detach().double().numpy() for v in (x, dt, A, B, C, D))
    h = np.zeros((len(x), *A.shape)) if state is None else state.detach().double().numpy().copy()
    y = np.zeros_like(x)
    for row in range(len(x)):
        current = 0
        for t in range(x.shape[1]):
            if document is not None and int(document[row, t]) != current:
                current, h[row] = int(document[row, t]), 0
            step = dt[row, t][:, None] * np.ones_like(A)
            gain = np.expm1(step * A) / A if zoh else step
            h[row] = np.exp(step * A) * h[row] + gain * np.outer(x[row, t], B[row, t])
            y[row, t] = h[row] @ C[row, t] + D * x[row, t]
    return torch.from_numpy(y), torch.from_numpy(h)


def inputs(t, b=3, d=5, n=4, dtype=torch.float64):
    x, B, C = torch.randn(b, t, d), torch.randn(b, t, n), torch.randn(b, t, n)
    dt = torch.exp(torch.empty(b, t, d).uniform_(-7, 0))
    A = -torch.arange(1, n + 1).expand(d, n) * torch.rand(d, 1)
    return [v.to(dtype) for v in (x, dt, A, B, C, torch.randn(d))]


@pytest.fixture(params=[None, 1], ids=["one block", "small blocks"])
def block(request, monkeypatch):
    """Sizes at which many blocks follow one another, and the shipped one."""
    if request.param:
        monkeypatch.setattr(reference, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, packed, dtype, zoh):
    args = inputs(t, dtype=dtype)
    state = torch.randn(3, 5, 4, dtype=dtype)
    document = documents(3, t) if packed else None
    y, h = selective_scan(*args, state=state, document=document, zoh=zoh)
    true_y, true_h = oracle(*args, state, document, zoh)
    assert error(y, true_y) < LIMIT[dtype]
    assert error(h, true_h) < LIMIT[dtype]
    assert (y.dtype, h.dtype) == (dtype, dtype)


def test_without_a_state_it_starts_from_zero():
    args = inputs(40)
    for ours, true in zip(selective_scan(*args), oracle(*args), strict=True):
        assert error(ours, true) < 1e-12


def test_without_skip_weights():
    x, dt, A, B, C, D = inputs(20)
    assert torch.equal(selective_scan(x, dt, A, B, C, None)[0], selective_scan(x, dt, A, B, C, D * 0)[0])


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("cuts", [[1, 39], [16, 24], [17, 22, 1], [1, 2, 2, 3, 1, 31]])
def test_split(cuts, zoh):
    args, document = inputs(40), documents(3, 40)
    whole, end = selective_scan(*args, state=torch.ones(3, 5, 4).double(), document=document, zoh=zoh)
    h, pieces, seen = torch.ones(3, 5, 4).double(), [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [v[:, part] if v.ndim == 3 else v for v in args]
        y, h = selective_scan(*cut, state=h, document=document[:, part] - seen, zoh=zoh)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(h, end) < 1e-12


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("t", [1, 2, 9, 19])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("zoh", [False, True])
def test_gradients(t, packed, zoh, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 4)
    args = [*inputs(t, b=2, d=3, n=2), torch.randn(2, 3, 2).double()]
    document = documents(2, t) if packed else None

    def call(*args):
        y, h = selective_scan(*args[:-1], state=args[-1], document=document, zoh=zoh)
        return y.transpose(1, 2), h  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [v.requires_grad_() for v in args], fast_mode=True)


@pytest.mark.parametrize("dt", [None, 1e-5])
@pytest.mark.parametrize("zoh", [False, True])
def test_float32_gradients_are_as_exact_as_the_outputs(zoh, dt):
    """With dt A near 0 too, where (exp(dt A) - 1) / A and its derivative are quotients of small numbers."""
    args = inputs(130, dtype=torch.float32)
    args[1] = args[1] if dt is None else dt * torch.rand_like(args[1])

    def gradients(dtype):
        leaves = [v.to(dtype).requires_grad_() for v in args]
        y, h = selective_scan(*leaves, zoh=zoh)
        return torch.autograd.grad(y.square().mean() + h.square().mean(), leaves)

    for ours, true in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert error(ours, true) < 4 * LIMIT[torch.float32]


def test_documents_pass_no_gradient():
    args = [v.requires_grad_() for v in inputs(40)]
    state = torch.randn(3, 5, 4).double().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, h = selective_scan(*args, state=state, document=document)
    dx, dstate = torch.autograd.grad(y[:, 20:].sum() + h.sum(), [args[0], state])
    assert torch.equal(dstate, torch.zeros_like(dstate))
    assert torch.equal(dx[:, :20], torch.zeros_like(dx[:, :20]))
    assert dx[:, 20:].abs().min() > 0


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("mapped", range(6))
def test_vmap(t, mapped, zoh):
    """One argument, or all, with another axis in front: as in a stack of models that share data or weights."""
    args, many = inputs(t, b=2), [torch.stack(pair) for pair in zip(inputs(t, b=2), inputs(t, b=2), strict=True)]
    given = [many[i] if i == mapped else args[i] for i in range(6)]
    dims = tuple(0 if i == mapped else None for i in range(6))

    def loss(*args):
        y, h = selective_scan(*args, document=documents(2, t), zoh=zoh)
        return y.square().sum() + h.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(6))), in_dims=dims)(*given)
    for i in range(2):
        alone = torch.func.grad(loss, argnums=tuple(range(6)))(
            *(v[i] if k == mapped else v for k, v in enumerate(given))
        )
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("t", [1, 40])
def test_step_zero_holds_the_state(t, zoh):
    x, _, A, B, C, D = inputs(t, dtype=torch.float32)
    state = torch.randn(3, 5, 4)
    _, h = selective_scan(x, torch.zeros_like(x), A, B, C, D, state=state, zoh=zoh)
    assert torch.equal(h, state)


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("t", [1, 40])
def test_extremes_stay_finite(t, zoh):
    """dt A = -1e3 on half of the tokens, -1e-6 on the others, |x| = 1e4."""
    x, dt, A, B, C, D = inputs(t, dtype=torch.float32)
    x, dt = 1e4 * x.sign(), torch.where(torch.rand_like(dt) < 0.5, 1e3, 1e-6)
    leaves = [v.requires_grad_() for v in (x, dt, -torch.ones_like(A), B, C, D)]
    y, h = selective_scan(*leaves, zoh=zoh)
    grads = torch.autograd.grad(y.sum() + h.sum(), leaves)
    assert all(v.isfinite().all() for v in (y, h, *grads))
    assert error(y, oracle(*leaves, zoh=zoh)[0]) < LIMIT[torch.float32]


def test_long_memory():
    """A = -1, dt = 1e-3, 16k tokens."""
    x, dt = torch.ones(1, 16384, 1), torch.full((1, 16384, 1), 1e-3)
    _, h = selective_scan(x, dt, -torch.ones(1, 1), torch.ones(1, 16384, 1), torch.ones(1, 16384, 1), None)
    decay = np.exp(np.float64(np.float32(1e-3)) * -1)
    true = np.float64(np.float32(1e-3)) * (1 - decay**16384) / (1 - decay)
    assert abs(h.item() / true - 1) < 1e-4


def test_zero_order_hold_is_exact_for_an_input_held_constant():
    """dh/dt = A h + B x with a constant x has a closed form, and steps of any size meet it."""
    A, B, steps = -torch.rand(1, 4).double() - 0.1, torch.randn(4).double(), torch.rand(1, 50, 1).double()
    _, h = selective_scan(torch.ones_like(steps), steps, A, B.expand(1, 50, 4), B.expand(1, 50, 4), None, zoh=True)
    assert error(h[0, 0], (torch.expm1(steps.sum() * A) / A * B)[0]) < 1e-14


@pytest.mark.parametrize("dt", [1e-1, 1e-2, 1e-3])
def test_euler_is_zero_order_hold_to_second_order(dt):
    """A step: dt against (1 - e^-dt) for A = -1, apart by dt^2 / 2 and a little."""
    one = torch.ones(1, 1, 1).double()
    euler, zoh = (selective_scan(one, dt * one, -one[0], one, one, None, zoh=z)[1].item() for z in (False, True))
    assert euler == dt
    assert (euler - zoh) / dt**2 == pytest.approx(0.5, rel=dt)


def test_bf16_keeps_a_float32_state():
    args = inputs(130, dtype=torch.bfloat16)
    y, h = selective_scan(*args)
    true_y, true_h = oracle(*args)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, true_y) < 2 * 1.66e-3
    assert error(h, true_h) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 40])
def test_autocast_changes_nothing(t):
    assert_autocast_changes_nothing(selective_scan, inputs(t, dtype=torch.float32))


def test_strides_do_not_matter_and_inputs_stay():
    assert_strides_do_not_matter(selective_scan, inputs(40))


def test_states_are_not_kept_for_every_token():
    """What the backward pass holds on to grows as t d, not as t d n."""
    x, dt, A, B, C, D = inputs(256, b=1, d=32, n=64, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
        selective_scan(x.requires_grad_(), dt, A, B, C, D)
    assert max(kept) <= 256 * 32 * 64 // reference.CHUNK


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.usefixtures("compiler")
def test_one_graph_whether_or_not_gradients_flow(gradients):
    args = [torch.randn(2, 3, 5), torch.rand(2, 3, 5), -torch.rand(5, 4), *torch.randn(2, 2, 3, 4), torch.randn(5)]
    args = [v.requires_grad_(gradients) for v in args]
    found = torch.compile(lambda *args: selective_scan(*args), fullgraph=True, backend="aot_eager")(*args)
    for one, two in zip(found, selective_scan(*args), strict=True):
        torch.testing.assert_close(one, two)


def test_unknown_backend():
    with pytest.raises(SpecError, match="tritn"):
        selective_scan(*inputs(2), backend="tritn")


@pytest.mark.parametrize("zoh", [False, True])
def test_second_derivatives(zoh):
    """The backward pass keeps states as numbers; asked for its own gradient, it computes them again."""
    torch.manual_seed(0)
    sizes = [(1, 20, 2), (1, 20, 2), (2, 3), (1, 20, 3), (1, 20, 3)]
    inputs = [torch.randn(size, dtype=torch.float64) for size in sizes]
    inputs[1], inputs[2] = inputs[1].abs(), -inputs[2].abs()
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *x: selective_scan(*x, None, zoh=zoh)[0], inputs, fast_mode=True)
