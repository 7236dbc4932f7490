"""S5's scan against dense float64 matrices, built from the definition alone, and a loop over time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.hippo import diagonal
from hybridlm.ops.s5_scan import s5_flops, s5_scan
from tests.ops.common import Calls, apart, cases, check

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
NAMES = ("Lambda", "B", "C", "D", "dt")


# ----------------------------------------------------------------------------------------------------------- the oracle
class Dense:
    """The system in real coordinates (Re, Im), held for one step by the exponential of a matrix (Van Loan 1978)."""

    def __init__(self, Lambda, B, C, D, dt):
        Lambda, B, C, self.D, dt = (x.double() for x in (Lambda, B, C, D, dt))
        n, d = B.shape[:2]
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
        A = torch.block_diag(*(re * torch.eye(2).double() + im * turn for re, im in Lambda))
        step = dt.repeat_interleave(2)[:, None]
        both = torch.zeros(2 * n + d, 2 * n + d).double()
        both[: 2 * n] = step * torch.cat([A, B.transpose(1, 2).reshape(2 * n, d)], dim=1)
        both = expm(both)
        self.A, self.B = both[: 2 * n, : 2 * n], both[: 2 * n, 2 * n :]
        self.C = (C * torch.tensor([2.0, -2.0])).flatten(1)

    def __call__(self, x, state):
        """x (b, t, d), state (b, n, 2) -> y (b, t, d), and the state after every token (b, t, n, 2)."""
        h, outputs, states = state.double().flatten(1), [], []
        for token in x.double().unbind(1):
            h = h @ self.A.T + token @ self.B.T
            outputs.append(h @ self.C.T + self.D * token)
            states.append(h.unflatten(1, (-1, 2)))
        return torch.stack(outputs, 1), torch.stack(states, 1)


def expm(M):
    """e^M by scaling, Taylor's series and squaring, in numpy's longest floats: slow states stand beside fast ones."""
    M = M.numpy().astype(np.longdouble)
    halvings = max(0, math.ceil(math.log2(np.abs(M).sum(0).max() + 1e-300)) + 1)
    term = total = np.eye(len(M), dtype=np.longdouble)
    for k in range(1, 24):
        term = term @ M / 2**halvings / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return torch.from_numpy(total.astype(np.float64))


def hippo(d=4, n=16, dtype=torch.float64):
    """Parameters as at the start of training: keyword arguments of s5_scan."""
    g = torch.Generator().manual_seed(0)
    B, C = torch.randn(n, d, 2, generator=g) / d**0.5, torch.randn(d, n, 2, generator=g) / n**0.5
    values = (diagonal("legs", 2 * n), B, C, torch.randn(d, generator=g), torch.logspace(-3, -1, n))
    return dict(zip(NAMES, (x.to(dtype) for x in values), strict=True))


def anything(d=3, n=5, dtype=torch.float64):
    """Parameters of no particular structure, each number its own."""
    g = torch.Generator().manual_seed(0)
    Lambda = torch.randn(n, 2, generator=g, dtype=torch.float64)
    Lambda = torch.stack([-Lambda[:, 0].exp(), 20 * Lambda[:, 1]], dim=-1)
    B, C = torch.randn(n, d, 2, generator=g), torch.randn(d, n, 2, generator=g)
    values = (Lambda, B, C, torch.randn(d, generator=g), torch.rand(n, generator=g) * 0.3 + 0.01)
    return dict(zip(NAMES, (x.to(dtype) for x in values), strict=True))


def draw(p, b, t, dtype=torch.float64):
    """Input (b, t, d) and state (b, n, 2) for parameters p."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, t, len(p["D"]), generator=g, dtype=torch.float64)
    return x.to(dtype), torch.randn(b, len(p["dt"]), 2, generator=g, dtype=torch.float64).to(dtype)


# -------------------------------------------------------------------------------------------- scan = recurrence = dense
@pytest.mark.parametrize(
    ("parameters", "dtype", "t"),
    cases([hippo, anything], LIMIT, [1, 2, 3, 7, 64, 65, 1000, 4096], kept=(hippo, torch.float32)),
)
def test_scan_equals_recurrence_equals_dense(parameters, t, dtype):
    p = parameters(dtype=dtype)
    x, state = draw(p, 2, t, dtype)
    expected, states = Dense(**p)(x, state)
    y, after = s5_scan(x, **p, state=state)
    check(y, expected, LIMIT[dtype])
    check(after[:, None], states[:, -1:], LIMIT[dtype])
    outputs = []
    for token in x[:, :1000].split(1, dim=1):
        y, state = s5_scan(token, **p, state=state)
        outputs.append(y)
    check(torch.cat(outputs, dim=1), expected[:, :1000], LIMIT[dtype])
    check(state[:, None], states[:, min(t, 1000) - 1, None], LIMIT[dtype])
    fresh, nothing = s5_scan(x, **p)
    assert nothing is None
    check(fresh, Dense(**p)(x, torch.zeros_like(state))[0], LIMIT[dtype])


@pytest.mark.parametrize("split", range(1, 33))
def test_hand_over_at_every_token(split):
    p = anything()
    x, state = draw(p, 2, 33)
    expected, states = Dense(**p)(x, state)
    first, middle = s5_scan(x[:, :split], **p, state=state)
    check(middle[:, None], states[:, split - 1 : split], 1e-12)
    second, last = s5_scan(x[:, split:], **p, state=middle)
    check(torch.cat([first, second], dim=1), expected, 1e-12)
    check(last[:, None], states[:, -1:], 1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 9])
def test_every_number_counts(name, t):
    """The same numbers in another order are another system: a parameter that is read wrongly would be seen above."""
    p = anything()
    x, state = draw(p, 1, t)
    mixed = p | {name: p[name].flatten().roll(1).reshape(p[name].shape)}
    if name == "Lambda":  # real parts must stay negative
        mixed[name] = p[name].roll(1, dims=0)
    assert (s5_scan(x, **mixed, state=state)[0] - s5_scan(x, **p, state=state)[0]).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------- rows and documents
@given(st.data())
def test_packed_and_padded_documents_equal_documents_apart(data):
    t = data.draw(st.sampled_from([1, 2, 17, 66]))
    steps = data.draw(st.lists(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=t, max_size=t), min_size=1, max_size=3))
    lengths = torch.tensor([data.draw(st.integers(0, t)) for _ in steps])
    valid = torch.arange(t) < lengths[:, None]
    document = (torch.tensor(steps) * valid).cumsum(dim=1)
    p = anything()
    x, state = draw(p, len(steps), t)
    y, after = s5_scan(torch.where(valid[..., None], x, 1e4), **p, state=state, lengths=lengths, document=document)
    expected, states = apart(Dense(**p), x, state, document, lengths)
    torch.testing.assert_close(torch.where(valid[..., None], y, 0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(after, states, rtol=0, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("t", [1, 2, 6, 70])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed):
    p = {name: value.requires_grad_() for name, value in anything(d=2, n=3).items()}
    x, state = (tensor.requires_grad_() for tensor in draw(p, 2, t))
    document = torch.zeros(2, t, dtype=torch.int64)
    document[1, t // 3 :] = 1  # not in the middle: the backward pass runs from right to left
    more = {"lengths": torch.tensor([t, (t + 1) // 2]), "document": document} if packed else {}

    def run(x, state, *values):
        y, after = s5_scan(x, **dict(zip(NAMES, values, strict=True)), state=state, **more)
        fresh, _ = s5_scan(x, **dict(zip(NAMES, values, strict=True)))
        return y.mT, after, fresh

    assert torch.autograd.gradcheck(run, (x, state, *p.values()), fast_mode=True)


def test_vmap_over_rows_and_over_systems():
    p = anything()
    x, state = draw(p, 3, 9)
    y, after = torch.func.vmap(lambda row, h: s5_scan(row[None], **p, state=h[None]))(x, state)
    expected, states = s5_scan(x, **p, state=state)
    torch.testing.assert_close((y[:, 0], after[:, 0]), (expected, states), rtol=0, atol=1e-13)
    factors = torch.tensor([0.5, 1.0, 1.5]).double()

    def loss(factor):
        return s5_scan(x, **(p | {"dt": factor * p["dt"]}), state=state)[0].square().mean()

    slopes = torch.func.vmap(torch.func.grad(loss))(factors)
    for factor, slope in zip(factors, slopes, strict=True):
        torch.testing.assert_close(slope, torch.func.grad(loss)(factor), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- extremes
@pytest.mark.parametrize("t", [1, 100])
def test_a_step_of_zero_holds_the_state(t):
    p = hippo() | {"dt": torch.zeros(16, dtype=torch.float64)}
    x, state = draw(p, 1, t)
    y, after = s5_scan(x, **p, state=state)
    assert torch.equal(after, state)
    held = (p["C"] * state * torch.tensor([2.0, -2.0])).sum((-1, -2))
    torch.testing.assert_close(y, p["D"] * x + held, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 100])
@pytest.mark.parametrize("dt", [0.0, 1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("dtype", LIMIT)
def test_extremes_are_finite_and_right(dt, t, dtype):
    p = hippo(dtype=dtype) | {"dt": torch.full((16,), dt, dtype=dtype)}
    x, state = draw(p, 1, t, dtype)
    p = {name: value.requires_grad_() for name, value in p.items()}
    x = (1e4 * x).requires_grad_()
    y, after = s5_scan(x, **p, state=state)
    expected, states = Dense(**{name: value.detach() for name, value in p.items()})(x.detach(), state)
    check(y, expected, LIMIT[dtype])
    check(after[:, None], states[:, -1:], LIMIT[dtype])
    (y.square().mean() + after.square().mean()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *p.values()))


def test_half_precision_and_autocast_keep_a_float32_state():
    p = hippo(dtype=torch.float32)
    x, state = draw(p, 2, 40, torch.float32)
    exact, states = Dense(**p)(x.bfloat16(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, after = s5_scan(x.bfloat16(), **p, state=state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    check(y, exact, 2 * 1.66e-3)
    check(after[:, None], states[:, -1:], 2e-6)


def test_inputs_are_left_alone():
    p = hippo(dtype=torch.float32)
    x, state = draw(p, 2, 30, torch.float32)
    kept = [tensor.clone() for tensor in (x, state, *p.values())]
    s5_scan(x, **p, state=state)
    s5_scan(x[:, :1], **p, state=state)
    assert all(torch.equal(*pair) for pair in zip(kept, (x, state, *p.values()), strict=True))


# ----------------------------------------------------------------------------------------------------------------- cost
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("t", [1, 2, 7, 65])
def test_flops_are_those_that_are_done(t, state):
    p = hippo(d=3, n=8)
    x, h = draw(p, 1, t)
    with FlopCounterMode(display=False) as counter:
        s5_scan(x, **p, state=h if state else None)
    assert s5_flops(3, 16, t, state)[0] == counter.get_total_flops()


def test_flops_by_hand():
    """d = 2, P = 4, t = 6: 5, 4 and 2 tokens have one 1, 2 and 4 before them; two couples, 8 each, and 6 for Bbar u."""
    assert s5_flops(2, 4, 6, False) == (2 * 6 * (2 * 4 + 4 * 2), 2 * (8 * (5 + 4 + 2) + 6 * 6) + 6 * 2 * 2)
    assert s5_flops(2, 4, 1, True) == (2 * (2 * 4 + 4 * 2), 2 * 16 + 2 * 2)


def test_no_loop_over_time():
    p, counts = hippo(), []
    for t in (64, 4096):
        x, state = draw(p, 1, t)
        with Calls() as calls:
            s5_scan(x, **p, state=state)
        counts.append(calls.number)
    assert counts[1] - counts[0] < 20 * 6  # six more doublings, a handful of operations each


def test_a_token_discretises_states_and_not_matrices():
    """B and C hold n d numbers each: a step that scaled them anew would take longer than its products with them."""
    p = hippo(d=40, n=8)
    x, state = draw(p, 2, 1)
    with Calls() as calls:
        s5_scan(x, **p, state=state)
    assert 0 < calls.largest_complex <= 2 * 8


def test_a_backend_that_is_missing_is_refused():
    p = anything()
    with pytest.raises(UnsupportedError, match="s5_scan"):
        s5_scan(draw(p, 1, 4)[0], **p, backend="vendor")
