"""The shift state space model against its own recurrence: a dense shift matrix, e_1 and a loop over time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import UnsupportedError
from hybridlm.ops.causal_conv import causal_conv1d
from hybridlm.ops.shift_ssm import shift_flops, shift_ssm
from tests.ops.common import Calls

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def dense(x, C, D, state):
    """x (b, t, d), state (b, d, n - 1) the latest last -> y (b, t, d), and the last n - 1 inputs after every token."""
    x, C, D, state = (tensor.double() for tensor in (x, C, D, state))
    n = C.shape[1]
    S, e = torch.diag(torch.ones(n - 1), -1).double(), torch.eye(n)[0].double()
    h = torch.cat([state.flip(2), torch.zeros_like(x[:, 0, :, None])], dim=2)  # the latest first; the oldest falls out
    outputs, states = [], []
    for token in x.unbind(1):
        h = h @ S.T + e * token[..., None]
        outputs.append((h * C).sum(-1) + D * token)
        states.append(h[..., : n - 1].flip(2))
    return torch.stack(outputs, 1), torch.stack(states, 1)


def draw(b, t, d=3, n=5, dtype=torch.float64):
    """x, C, D and a state."""
    g = torch.Generator().manual_seed(1)
    shapes = ((b, t, d), (d, n), (d,), (b, d, n - 1))
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def check(y, expected, limit):
    """RMS error relative to the RMS."""
    assert (y.double() - expected).square().mean().sqrt() <= limit * expected.square().mean().sqrt()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("t", [1, 2, 7, 63, 64, 65, 1000])
def test_convolution_equals_recurrence_equals_dense(t, n, dtype):
    x, C, D, state = draw(2, t, n=n, dtype=dtype)
    expected, states = dense(x, C, D, state)
    y, after = shift_ssm(x, C, D, state=state)
    check(y, expected, LIMIT[dtype])
    assert torch.equal(after.double(), states[:, -1])
    outputs = []
    for token in x.split(1, dim=1):
        y, state = shift_ssm(token, C, D, state=state)
        outputs.append(y)
    check(torch.cat(outputs, dim=1), expected, LIMIT[dtype])
    assert torch.equal(state.double(), states[:, -1])
    fresh, nothing = shift_ssm(x, C, D)
    assert nothing is None
    check(fresh, dense(x, C, D, torch.zeros_like(state))[0], LIMIT[dtype])


@pytest.mark.parametrize("split", range(1, 33))
def test_hand_over_at_every_token(split):
    x, C, D, state = draw(2, 33, n=9)
    expected, states = dense(x, C, D, state)
    first, middle = shift_ssm(x[:, :split], C, D, state=state)
    second, last = shift_ssm(x[:, split:], C, D, state=middle)
    check(torch.cat([first, second], dim=1), expected, 1e-12)
    assert torch.equal(middle, states[:, split - 1])
    assert torch.equal(last, states[:, -1])


@given(st.data())
def test_packed_and_padded_documents_equal_documents_apart(data):
    t = data.draw(st.sampled_from([1, 2, 17, 40]))
    steps = data.draw(st.lists(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=t, max_size=t), min_size=1, max_size=3))
    lengths = torch.tensor([data.draw(st.integers(0, t)) for _ in steps])
    valid = torch.arange(t) < lengths[:, None]
    document = (torch.tensor(steps) * valid).cumsum(dim=1)
    x, C, D, state = draw(len(steps), t)
    x = torch.where(valid[..., None], x, 0)
    y, after = shift_ssm(x, C, D, state=state, lengths=lengths, document=document)
    for row, length in enumerate(lengths.tolist()):
        expected = state[row] if document[row, -1] == 0 else torch.zeros_like(state[row])
        for number in document[row, :length].unique():
            at = (document[row] == number) & valid[row]
            start = state[row : row + 1] if number == 0 else torch.zeros_like(state[:1])
            outputs, states = dense(x[row : row + 1, at], C, D, start)
            torch.testing.assert_close(y[row, at], outputs[0], rtol=0, atol=1e-12)
            expected = states[0, -1]
        assert torch.equal(after[row], expected)


def test_equals_the_short_convolution():
    """The same filter, whose last tap is the present, and D beside it."""
    x, C, D, state = draw(2, 50)
    weight = C.flip(1).clone()
    weight[:, -1] += D
    y, after = causal_conv1d(x, weight[:, None], None, state=state)
    mine, last = shift_ssm(x, C, D, state=state)
    torch.testing.assert_close(mine, y, rtol=0, atol=1e-13)
    assert torch.equal(last, after)


@pytest.mark.parametrize("t", [1, 2, 20])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed):
    leaves = [tensor.requires_grad_() for tensor in draw(2, t)]
    document = torch.zeros(2, t, dtype=torch.int64)
    document[1, t // 2 :] = 1
    more = {"document": document} if packed else {}

    def run(x, C, D, state):
        y, after = shift_ssm(x, C, D, state=state, **more)
        return y.mT, after, shift_ssm(x, C, D)[0]

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_vmap():
    x, C, D, state = draw(3, 9)
    y, after = torch.func.vmap(lambda row, h: shift_ssm(row[None], C, D, state=h[None]))(x, state)
    expected, states = shift_ssm(x, C, D, state=state)
    torch.testing.assert_close((y[:, 0], after[:, 0]), (expected, states), rtol=0, atol=1e-13)


def test_half_precision_rounds_once():
    x, C, D, state = draw(2, 40, n=64, dtype=torch.bfloat16)
    y, after = shift_ssm(x, C, D, state=state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.bfloat16)
    check(y, dense(x, C, D, state)[0], 2 * 1.66e-3)


def test_inputs_are_left_alone():
    tensors = draw(2, 30)
    kept = [tensor.clone() for tensor in tensors]
    *leaves, state = tensors
    shift_ssm(*leaves, state=state)
    shift_ssm(leaves[0][:, :1], *leaves[1:], state=state)
    assert all(torch.equal(*pair) for pair in zip(kept, tensors, strict=True))


@pytest.mark.parametrize("n", [4, 64])
def test_no_loop_over_time_or_taps(n):
    x, C, D, state = draw(1, 2000, n=n)
    with Calls() as calls:
        shift_ssm(x, C, D, state=state)
    assert calls.number < 60


def test_flops_by_hand():
    """d = 2, n = 4: 4 taps and D. Eight tokens after three that are remembered: FFTs of length 24 (32, or 3 * 8)."""
    assert shift_flops(2, 4, 1, True) == (2 * (2 * 4 + 2), 0)
    assert shift_flops(2, 4, 1, False) == (2 * (2 + 2), 0)
    recurrence, ffts = shift_flops(2, 4, 8, True)
    assert recurrence == 2 * 8 * 2
    assert ffts == pytest.approx(3 * 2 * 2.5 * 24 * 4.584962500721156)
    assert shift_flops(2, 4, 8, False)[1] == pytest.approx(3 * 2 * 2.5 * 16 * 4)


def test_a_backend_that_is_missing_is_refused():
    with pytest.raises(UnsupportedError, match="shift_ssm"):
        shift_ssm(*draw(1, 4)[:3], backend="vendor")
