"""Mamba-3's recurrence against a loop over rows, tokens and heads with complex numbers, from section 3 of the paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.ops.ssd import ssd
from hybridlm.ops.trapezoidal_ssd import Memory, trapezoidal_ssd
from hybridlm.ops.trapezoidal_ssd.reference import rotate
from tests.ops.common import documents, error

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
LENGTHS = [1, 2, 7, 8, 9, 16, 17, 70]


def oracle(x, dt, A, trap, turn, B, C, state, document=None):
    """One row, one token, one head at a time."""
    x, dt, A, trap, turn, B, C = (v.detach().double().numpy() for v in (x, dt, A, trap, turn, B, C))
    a = turn.shape[-1]

    def paired(v):
        return np.concatenate([v[..., : 2 * a : 2] + 1j * v[..., 1 : 2 * a : 2], v[..., 2 * a :]], -1)

    H, key, value = (v.detach().double().numpy().copy() for v in state)
    H, B, C, raw, key = paired(H), paired(B), paired(C), B, paired(key)
    y = np.zeros_like(x)
    for row in range(len(x)):
        now = 0
        for t in range(x.shape[1]):
            if document is not None and int(document[row, t]) != now:
                now, H[row], value[row] = int(document[row, t]), 0, 0
            for h in range(x.shape[2]):
                angles = np.concatenate([turn[row, t, h], np.zeros(B.shape[-1] - a)])
                alpha = np.exp(dt[row, t, h] * A[row, t, h] - 1j * angles)
                late, own = (1 - trap[row, t, h]) * dt[row, t, h], trap[row, t, h] * dt[row, t, h]
                H[row, h] = alpha * (H[row, h] + late * np.outer(value[row, h], key[row, h]))
                H[row, h] += own * np.outer(x[row, t, h], B[row, t, h])
                y[row, t, h] = (H[row, h] @ C[row, t, h].conj()).real
            key[row], value[row] = B[row, t], x[row, t]
    flat = np.concatenate(
        [np.stack([H[..., :a].real, H[..., :a].imag], -1).reshape(*H.shape[:-1], 2 * a), H[..., a:].real], -1
    )
    return torch.from_numpy(y), Memory(torch.from_numpy(flat), torch.from_numpy(raw[:, -1]), torch.from_numpy(x[:, -1]))


def inputs(t, b=3, h=2, p=3, n=7, a=2, dtype=torch.float64):
    dt, A = torch.exp(torch.empty(b, t, h).uniform_(-4, 1)), -torch.rand(b, t, h) - 1e-3
    turn = math.pi * dt[..., None] * torch.empty(b, t, h, a).uniform_(-1, 1)
    x, B, C = torch.randn(b, t, h, p), torch.randn(b, t, h, n), torch.randn(b, t, h, n)
    args = [v.to(dtype) for v in (x, dt, A, torch.rand(b, t, h), turn, B, C)]
    return args, Memory(*(torch.randn(s).to(dtype) for s in ((b, h, p, n), (b, h, n), (b, h, p))))


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("a", [0, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_recurrence(t, packed, a, dtype):
    args, state = inputs(t, a=a, dtype=dtype)
    document = documents(3, t) if packed else None
    y, last = trapezoidal_ssd(*args, state=state, document=document, chunk=8)
    true_y, true = oracle(*args, state, document)
    assert error(y, true_y) < LIMIT[dtype]
    for ours, wanted in zip(last, true, strict=True):
        assert error(ours, wanted) < LIMIT[dtype]
        assert ours.dtype == dtype


def test_without_a_state_it_starts_from_zero():
    args, state = inputs(20)
    y, last = trapezoidal_ssd(*args, chunk=8)
    true_y, true = oracle(*args, Memory(*(torch.zeros_like(v) for v in state)))
    assert error(y, true_y) < 1e-12
    assert error(last.ssm, true.ssm) < 1e-12


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_split(cuts, seed):
    """Any pieces, over documents: outputs and what is remembered are those of one call."""
    torch.manual_seed(seed)
    t = sum(cuts)
    (args, state), document = inputs(t), documents(3, t)
    whole, end = trapezoidal_ssd(*args, state=state, document=document, chunk=4)
    pieces, seen = [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(t).split(cuts):
        y, state = trapezoidal_ssd(*(v[:, part] for v in args), state=state, document=document[:, part] - seen, chunk=4)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-11)
    for one, other in zip(state, end, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_pads_hold_what_was_there():
    """dt = 0 and no turn after each row's length, 0 among them; the state is that of the tokens before."""
    args, state = inputs(20)
    lengths = torch.tensor([0, 11, 20])
    valid = torch.arange(20) < lengths[:, None]
    padded = [v * valid.reshape(3, 20, *[1] * (v.ndim - 2)) if i in (0, 1, 4) else v for i, v in enumerate(args)]
    _, last = trapezoidal_ssd(*padded, state=state, lengths=lengths, chunk=8)
    for row in (1, 2):
        cut = [v[row : row + 1, : lengths[row]] for v in args]
        _, true = trapezoidal_ssd(*cut, state=Memory(*(v[row : row + 1] for v in state)), chunk=8)
        for ours, wanted in zip(last, true, strict=True):
            torch.testing.assert_close(ours[row], wanted[0], rtol=1e-12, atol=1e-12)
    for ours, before in zip(last, state, strict=True):
        assert torch.equal(ours[0], before[0])


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed):
    args, state = inputs(t, b=2, h=2, p=2, n=3, a=1)
    document = documents(2, t) if packed else None

    def call(*args):
        y, last = trapezoidal_ssd(*args[:7], state=Memory(*args[7:]), document=document, chunk=4)
        return y.transpose(1, 2), *last

    torch.autograd.gradcheck(call, [v.requires_grad_() for v in (*args, *state)], fast_mode=True)


def test_documents_pass_no_gradient():
    args, state = inputs(30)
    args, state = [v.requires_grad_() for v in args], Memory(*(v.requires_grad_() for v in state))
    document = torch.full((3, 30), 1)
    document[:, 17:] = 2
    y, last = trapezoidal_ssd(*args, state=state, document=document, chunk=8)
    gradients = torch.autograd.grad(y[:, 17:].square().sum() + last.ssm.square().sum(), [*args, *state])
    for gradient in gradients[:7]:
        assert torch.equal(gradient[:, :17], torch.zeros_like(gradient[:, :17]))
        assert gradient[:, 18:].abs().max() > 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients[7:])


def test_future_tokens_change_no_bit_of_the_past():
    """The weight of the next step is read at the next step."""
    args, state = inputs(20, dtype=torch.float32)
    y, _ = trapezoidal_ssd(*args, state=state, chunk=32)
    changed = [torch.cat([v[:, :13], 1e3 * v[:, 13:]], 1) for v in args]
    assert torch.equal(trapezoidal_ssd(*changed, state=state, chunk=32)[0][:, :13], y[:, :13])


def test_eulers_rule_without_a_turn_is_ssd():
    """l = 1: what Mamba-2 computes, with A the same at every step."""
    (x, dt, _, trap, turn, B, C), state = inputs(40)
    A = -torch.rand(2).double()
    y, last = trapezoidal_ssd(x, dt, A.expand_as(dt), torch.ones_like(trap), 0 * turn, B, C, state=state)
    true, H = ssd(x, dt, A, B, C, None, state=state.ssm)
    assert error(y, true) < 1e-13
    assert error(last.ssm, H) < 1e-13


def test_the_trapezoid_is_of_second_order():
    """dh/dt = -h + x with x = cos: the error falls as dt^2 with l = 1/2 and as dt with l = 1."""
    errors = {}
    for l in (0.5, 1.0):  # noqa: E741
        for steps in (64, 128):
            one = torch.ones(1, steps, 1, dtype=torch.float64)
            times = torch.arange(1, steps + 1, dtype=torch.float64) * 4 / steps
            state = Memory(*(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1)))  # x(0) = 1
            state = Memory(*(v.double() for v in state))
            args = [times.cos().reshape(1, -1, 1, 1), 4 / steps * one, -one, l * one, one.unsqueeze(-1)[..., :0]]
            _, last = trapezoidal_ssd(*args, one.unsqueeze(-1), one.unsqueeze(-1), state=state)
            exact = (math.cos(4) + math.sin(4) - math.exp(-4)) / 2
            errors[l, steps] = abs(last.ssm.item() - exact)
    assert 3.9 < errors[0.5, 64] / errors[0.5, 128] < 4.1
    assert 1.8 < errors[1.0, 64] / errors[1.0, 128] < 2.2


def test_a_half_turn_at_every_one_tells_parity():
    """The sign of a state that turns by pi at each 1: the task that no state of positive decay solves (section 3.2)."""
    bits = torch.randint(2, (4, 100, 1)).double()
    zero, one = torch.zeros(4, 100, 1).double(), torch.ones(4, 100, 1).double()
    keys = torch.tensor([1.0, 0.0]).double().expand(4, 100, 1, 2)
    state = Memory(*(v.double() for v in (torch.zeros(4, 1, 1, 2), torch.zeros(4, 1, 2), torch.zeros(4, 1, 1))))
    state.ssm[..., 0] = 1
    args = [zero[..., None], zero, -one, one, math.pi * bits[..., None]]
    y, _ = trapezoidal_ssd(*args, keys, keys, state=state)
    torch.testing.assert_close(y[..., 0, 0], (-1) ** bits[..., 0].cumsum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[16384], [64] * 256, [15384] + [1] * 1000])
def test_long_turning_memory(pieces):
    """16k tokens, hardly any decay, half a radian of turn a token: the float32 state keeps its phase."""
    t = sum(pieces)
    torch.manual_seed(0)
    dt, A = torch.full((1, t, 1), 1e-3), -torch.ones(1, t, 1)
    turn = torch.rand(1, t, 1, 2)
    x, B = torch.randn(1, t, 1, 1), torch.randn(1, t, 1, 4)
    args, memory = [x, dt, A, torch.full_like(dt, 0.5), turn, B, B], None
    for part in torch.arange(t).split(pieces):
        _, memory = trapezoidal_ssd(*(v[:, part] for v in args), state=memory)
    _, true = trapezoidal_ssd(*(v.double() for v in args))
    assert memory.ssm.dtype == torch.float32
    assert error(memory.ssm, true.ssm) < 1e-5


@pytest.mark.parametrize("t", [1, 20])
def test_vmap(t):
    many = [inputs(t, b=2) for _ in range(2)]
    stacked = [torch.stack(pair) for pair in zip(*([*args, *state] for args, state in many), strict=True)]

    def loss(*args):
        y, last = trapezoidal_ssd(*args[:7], state=Memory(*args[7:]), document=documents(2, t), chunk=8)
        return y.square().sum() + last.ssm.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(10))))(*stacked)
    for i, (args, state) in enumerate(many):
        for one, true in zip(ours, torch.func.grad(loss, argnums=tuple(range(10)))(*args, *state), strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [1, 20])
def test_extremes_stay_finite(t):
    """dt A = -1e3 on half of the tokens, -1e-6 on the others, turns of thousands, |x| = 1e4."""
    (x, dt, A, trap, turn, B, C), state = inputs(t, dtype=torch.float32)
    dt = torch.where(torch.rand_like(dt) < 0.5, 1e3, 1e-6)
    leaves = [v.detach().requires_grad_() for v in (1e4 * x.sign(), dt, -torch.ones_like(A), trap, 1e3 * turn, B, C)]
    y, last = trapezoidal_ssd(*leaves, state=state)
    gradients = torch.autograd.grad(y.sum() + last.ssm.sum(), leaves)
    assert all(v.isfinite().all() for v in (y, *last, *gradients))


def test_bf16_and_autocast_keep_a_float32_state():
    args, state = inputs(40, dtype=torch.bfloat16)
    y, last = trapezoidal_ssd(*args, state=state)
    assert (y.dtype, last.ssm.dtype) == (torch.bfloat16, torch.float32)
    args, state = inputs(40, dtype=torch.float32)
    plain = trapezoidal_ssd(*args, state=state)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trapezoidal_ssd(*args, state=state)[0], plain)


def test_turning_is_turning():
    v, angle = torch.randn(3, 7).double(), torch.randn(3, 2).double()
    turned = rotate(v, angle)
    pairs = torch.complex(v[:, :4:2], v[:, 1:4:2]) * torch.exp(1j * angle)
    torch.testing.assert_close(turned[:, :4:2], pairs.real)
    torch.testing.assert_close(turned[:, 1:4:2], pairs.imag)
    assert torch.equal(turned[:, 4:], v[:, 4:])
