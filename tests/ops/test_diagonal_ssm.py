"""Diagonal systems: kernel, recurrence and hand-over, all against dense float64 matrices and a loop over time.

The oracle knows nothing of diagonals: under a zero-order hold exp of the matrix [[A, B], [0, 0]] dt is
[[Abar, Bbar], [0, 1]] (Van Loan 1978), and the bilinear rule solves with the full matrix.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.diagonal_ssm import RULES, diagonal_flops, diagonal_kernel, diagonal_ssm
from hybridlm.ops.diagonal_ssm.reference import discretise
from hybridlm.ops.hippo import diagonal
from tests.ops.common import Calls, apart, cases, check
from tests.oracles.dense import expm

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
NAMES = ("Lambda", "B", "C", "D", "dt")


# ----------------------------------------------------------------------------------------------------------- the oracle
class Dense:
    """The N x N system of every channel, discretised as a matrix, run by a loop over time."""

    def __init__(self, Lambda, B, C, D, dt, rule="zoh"):
        Lambda, B, C = (full(x) for x in (Lambda, B, C))
        n, step = Lambda.shape[-1], dt.double()[:, None, None]
        A, self.C, self.D = torch.diag_embed(Lambda), C, D.double()
        if rule == "zoh":
            both = torch.zeros(len(dt), n + 1, n + 1, dtype=A.dtype)
            both[:, :n, :n], both[:, :n, n] = A, B
            both = torch.stack([expm(matrix) for matrix in step * both])
            self.A, self.B = both[:, :n, :n], both[:, :n, n]
        else:
            eye = torch.eye(n, dtype=A.dtype)
            self.A = torch.linalg.solve(eye - step / 2 * A, eye + step / 2 * A)
            self.B = torch.linalg.solve(eye - step / 2 * A, step * B[..., None])[..., 0]

    def __call__(self, x, state):
        """x (b, t, d), state (b, d, n, 2) -> y (b, t, d), and the state after every token (b, t, d, n, 2)."""
        h, outputs, states = full(state), [], []
        for token in x.double().unbind(1):
            h = torch.einsum("dnm,bdm->bdn", self.A, h) + self.B * token[..., None]
            outputs.append((self.C * h).sum(-1).real + self.D * token)
            states.append(torch.view_as_real(h[..., : h.shape[-1] // 2]))
        return torch.stack(outputs, 1), torch.stack(states, 1)


def full(x):
    """Real pairs (..., n, 2) -> the 2 n complex numbers they stand for."""
    z = torch.view_as_complex(x.double().contiguous())
    return torch.cat([z, z.conj()], dim=-1)


def lin(d=4, n=64, dtype=torch.float64):
    """Parameters as at the start of training: keyword arguments of diagonal_ssm."""
    g = torch.Generator().manual_seed(0)
    B = torch.tensor([1.0, 0.0]).expand(d, n // 2, 2)
    C, D = torch.randn(d, n // 2, 2, generator=g), torch.randn(d, generator=g)
    values = (diagonal("lin", n).expand(d, -1, -1), B, C, D, torch.logspace(-3, -1, d, dtype=torch.float64))
    return dict(zip(NAMES, (x.to(dtype) for x in values), strict=True))


def anything(d=3, n=6, dtype=torch.float64):
    """Parameters of no particular structure, each channel and each number its own."""
    g = torch.Generator().manual_seed(0)
    Lambda, B, C = (torch.randn(d, n // 2, 2, generator=g, dtype=torch.float64) for _ in range(3))
    Lambda = torch.stack([-Lambda[..., 0].exp(), 20 * Lambda[..., 1]], dim=-1)
    values = (Lambda, B, C, torch.randn(d, generator=g), torch.rand(d, generator=g) * 0.3 + 0.01)
    return dict(zip(NAMES, (x.to(dtype) for x in values), strict=True))


def draw(p, b, t, dtype=torch.float64):
    """Input (b, t, d) and state (b, d, n, 2) for parameters p."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, t, len(p["D"]), generator=g, dtype=torch.float64)
    return x.to(dtype), torch.randn(b, *p["C"].shape, generator=g, dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------------------- discretisation
def test_rules_by_hand():
    """Lambda = -2, dt = 1/2: e^-1 and (1 - e^-1) / 2; (1 - 1/2) / (1 + 1/2) = 1/3 and (1/2) / (3/2) = 1/3."""
    Lambda, dt = torch.tensor([-2.0 + 0j], dtype=torch.complex128), torch.tensor([0.5]).double()
    E, s = discretise(Lambda, dt, "zoh")
    assert E.item() == pytest.approx(1 - math.exp(-1), abs=1e-15)
    assert s.item() == pytest.approx((1 - math.exp(-1)) / 2, abs=1e-15)
    E, s = discretise(Lambda, dt, "bilinear")
    assert E.item() == pytest.approx(2 / 3, abs=1e-15)
    assert s.item() == pytest.approx(1 / 3, abs=1e-15)


@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-12, 1e-6, 0.99e-3, 1.01e-3, 0.1, 1.0])
@pytest.mark.parametrize("direction", [-1.0, -0.6 + 0.8j, 1j])
def test_a_hold_is_exact_at_every_size(x, direction):
    """(e^z - 1) / z, and its derivative, against their series."""
    z = x * direction
    held = torch.tensor(z, dtype=torch.complex128, requires_grad=True)
    E, s = discretise(held, torch.tensor(1.0).double(), "zoh")
    (slope,) = torch.autograd.grad(s.real, held)  # of a function that is analytic: the conjugate of its derivative
    series = sum(z**k / math.factorial(k + 1) for k in range(30))
    derivative = sum(k * z ** (k - 1) / math.factorial(k + 1) for k in range(1, 30))
    assert abs(s.item() - series) <= 1e-15
    assert abs(E.item() + z * series) <= 2e-15 * x
    assert abs(slope.item().conjugate() - derivative) <= 2e-13


# ------------------------------------------------------------------------------------- convolution = recurrence = dense
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("t", [1, 2, 3, 7, 63, 64, 65, 128, 129, 1000, 4096])
def test_kernel_equals_the_dense_system(t, rule):
    p = lin()
    impulse, state = torch.zeros(1, t, 4), torch.zeros(1, 4, 32, 2)
    impulse[:, 0] = 1
    expected, _ = Dense(**(p | {"D": torch.zeros(4)}), rule=rule)(impulse, state)
    K = diagonal_kernel(**{name: p[name] for name in NAMES if name != "D"}, length=t, rule=rule)
    assert (K.dtype, K.shape) == (torch.float64, (4, t))
    check(K.T[None], expected, 1e-12)


@pytest.mark.parametrize(
    ("parameters", "dtype", "rule", "t"),
    cases([lin, anything], LIMIT, RULES, [1, 7, 1000, 4096], kept=(lin, torch.float32, "zoh")),
)
def test_convolution_equals_recurrence_equals_dense(parameters, t, dtype, rule):
    p = parameters(dtype=dtype)
    x, state = draw(p, 2, t, dtype)
    dense, p = Dense(**p, rule=rule), p | {"rule": rule}
    expected, states = dense(x, state)
    y, after = diagonal_ssm(x, **p, state=state)
    check(y, expected, LIMIT[dtype])
    check(after[:, None], states[:, -1:], LIMIT[dtype])
    outputs = []
    for token in x[:, :1000].split(1, dim=1):
        y, state = diagonal_ssm(token, **p, state=state)
        outputs.append(y)
    check(torch.cat(outputs, dim=1), expected[:, :1000], LIMIT[dtype])
    check(state[:, None], states[:, min(t, 1000) - 1, None], LIMIT[dtype])
    fresh, nothing = diagonal_ssm(x, **p)
    assert nothing is None
    check(fresh, dense(x, torch.zeros_like(state))[0], LIMIT[dtype])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", range(1, 33))
def test_hand_over_at_every_token(split, rule):
    p = anything()
    x, state = draw(p, 2, 33)
    expected, states = Dense(**p, rule=rule)(x, state)
    first, middle = diagonal_ssm(x[:, :split], **p, rule=rule, state=state)
    check(middle[:, None], states[:, split - 1 : split], 1e-12)
    second, last = diagonal_ssm(x[:, split:], **p, rule=rule, state=middle)
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
        mixed[name] = p[name].roll(1, dims=1)
    assert (diagonal_ssm(x, **mixed, state=state)[0] - diagonal_ssm(x, **p, state=state)[0]).abs().max() > 1e-3


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
    y, after = diagonal_ssm(torch.where(valid[..., None], x, 0), **p, state=state, lengths=lengths, document=document)
    expected, states = apart(Dense(**p), x, state, document, lengths)
    torch.testing.assert_close(torch.where(valid[..., None], y, 0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(after, states, rtol=0, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("t", [1, 6, 70])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed, rule):
    p = {name: value.requires_grad_() for name, value in anything(d=2, n=4).items()}
    x, state = (tensor.requires_grad_() for tensor in draw(p, 2, t))
    document = torch.zeros(2, t, dtype=torch.int64)
    document[1, t // 2 :] = 1
    more = {"lengths": torch.tensor([t, (t + 1) // 2]), "document": document} if packed else {}

    def run(x, state, *values):
        y, after = diagonal_ssm(x, **dict(zip(NAMES, values, strict=True)), rule=rule, state=state, **more)
        fresh, _ = diagonal_ssm(x, **dict(zip(NAMES, values, strict=True)), rule=rule)
        return y.mT, after, fresh

    assert torch.autograd.gradcheck(run, (x, state, *p.values()), fast_mode=True)


def test_vmap():
    p = anything()
    x, state = draw(p, 3, 9)
    y, after = torch.func.vmap(lambda row, h: diagonal_ssm(row[None], **p, state=h[None]))(x, state)
    expected, states = diagonal_ssm(x, **p, state=state)
    torch.testing.assert_close((y[:, 0], after[:, 0]), (expected, states), rtol=0, atol=1e-13)


def test_vmap_over_systems():
    """Several models as one, as seeds and learning rates are compared."""
    p = anything()
    x, state = draw(p, 2, 9)
    factors = torch.tensor([0.5, 1.0, 1.5]).double()
    y = torch.func.vmap(lambda factor: diagonal_ssm(x, **(p | {"dt": factor * p["dt"]}), state=state)[0])(factors)
    for factor, got in zip(factors, y, strict=True):
        expected, _ = diagonal_ssm(x, **(p | {"dt": factor * p["dt"]}), state=state)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------------- extremes
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("t", [1, 100])
def test_a_step_of_zero_holds_the_state(t, rule):
    p = lin() | {"dt": torch.zeros(4, dtype=torch.float64), "rule": rule}
    x, state = draw(p, 1, t)
    y, after = diagonal_ssm(x, **p, state=state)
    assert torch.equal(after, state)
    held = 2 * (p["C"][..., 0] * state[..., 0] - p["C"][..., 1] * state[..., 1]).sum(-1)
    torch.testing.assert_close(y, p["D"] * x + held[:, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("t", [1, 100])
@pytest.mark.parametrize("dt", [0.0, 1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("rate", [None, 0.0])
def test_extremes_are_finite_and_right(dt, rate, t, rule):
    """rate 0: an integrator, Lambda = 0, where (Abar - 1) / Lambda is 0/0."""
    p = lin() | {"dt": torch.full((4,), dt, dtype=torch.float64)}
    p["Lambda"] = p["Lambda"] if rate is None else torch.zeros_like(p["Lambda"])
    p = {name: value.clone().requires_grad_() for name, value in p.items()}
    x, state = draw(p, 1, t)
    x = (1e4 * x).requires_grad_()
    y, after = diagonal_ssm(x, **p, rule=rule, state=state)
    expected, states = Dense(**{name: value.detach() for name, value in p.items()}, rule=rule)(x.detach(), state)
    check(y, expected, 1e-12)
    check(after[:, None], states[:, -1:], 1e-12)
    (y.square().mean() + after.square().mean()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *p.values()))


def test_half_precision_input_keeps_a_float32_state():
    p = lin(dtype=torch.float32)
    x, state = draw(p, 2, 40, torch.float32)
    y, after = diagonal_ssm(x.bfloat16(), **p, state=state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    exact, states = Dense(**p)(x.bfloat16(), state)
    check(y, exact, 2 * 1.66e-3)
    check(after[:, None], states[:, -1:], 2e-6)


def test_inputs_are_left_alone():
    p = lin(dtype=torch.float32)
    x, state = draw(p, 2, 30, torch.float32)
    kept = [tensor.clone() for tensor in (x, state, *p.values())]
    diagonal_ssm(x, **p, state=state)
    diagonal_ssm(x[:, :1], **p, state=state)
    assert all(torch.equal(*pair) for pair in zip(kept, (x, state, *p.values()), strict=True))


# ----------------------------------------------------------------------------------------------------------------- cost
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("n", "t"), [(4, 1), (16, 2), (16, 7), (8, 64), (8, 65), (4, 200), (64, 1000)])
def test_flops_are_those_that_are_done(n, t, state):
    p = lin(d=3, n=n)
    x, h = draw(p, 1, t)
    with FlopCounterMode(display=False) as counter:
        diagonal_ssm(x, **p, state=h if state else None)
    assert diagonal_flops(3, n, t, state)[0] == counter.get_total_flops()


def test_flops_by_hand():
    """d = 2, N = 4, t = 5: two blocks of 4, FFTs of length 12: of the kernel, and of x there and back."""
    product, fft = 2 * 4 * 2 * 4, 2.5 * 12 * math.log2(12)
    assert diagonal_flops(2, 4, 5, False) == (2 * product, 0, pytest.approx(2 * 3 * fft))
    assert diagonal_flops(2, 4, 5, True) == (2 * 3 * product, 0, pytest.approx(2 * 3 * fft))
    assert diagonal_flops(2, 4, 1, True) == (0, 2 * (16 * 2 + 2), 0)


def test_no_loop_over_time():
    p = lin(n=8)
    counts = []
    for t in (64, 4096):
        x, state = draw(p, 1, t)
        with Calls() as calls:
            diagonal_ssm(x, **p, state=state)
        counts.append(calls.number)
    assert counts[1] - counts[0] < 30 * 6  # six more doublings, a handful of operations each


def test_a_backend_that_is_missing_is_refused():
    p = anything()
    x, _ = draw(p, 1, 4)
    with pytest.raises(UnsupportedError, match="diagonal_ssm"):
        diagonal_ssm(x, **p, backend="vendor")
    del p["D"]
    with pytest.raises(UnsupportedError, match="diagonal_kernel"):
        diagonal_kernel(**p, length=4, backend="triton")
