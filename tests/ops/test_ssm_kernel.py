"""S4's kernel, recurrence and hand-over, all against one dense float64 system, built from the definition alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.hippo import dplr
from hybridlm.ops.ssm_kernel import s4_flops, s4_kernel, s4_scan
from tests.ops.common import Calls, apart, cases, check

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
NAMES = ("Lambda", "P", "B", "C", "D", "dt")


# ----------------------------------------------------------------------------------------------------------- the oracle
class Dense:
    """The N x N system of every channel, discretised by solving with the full matrix, run by a loop over time."""

    def __init__(self, Lambda, P, B, C, D, dt):
        Lambda, P, B, C = (full(x) for x in (Lambda, P, B, C))
        step = dt.double().numpy()[:, None, None]
        identity = np.eye(Lambda.shape[-1])
        A = Lambda[:, :, None] * identity - P[:, :, None] * P[:, None, :].conj()
        self.A = np.linalg.solve(identity - step / 2 * A, identity + step / 2 * A)
        self.B = np.linalg.solve(identity - step / 2 * A, step * B[:, :, None])[..., 0]
        self.C, self.D = C, D.double().numpy()

    def __call__(self, x, state):
        """x (b, t, d), state (b, d, n, 2) -> y (b, t, d), and the state after every token (b, t, d, n, 2)."""
        h, outputs, states = full(state), [], []
        for token in x.double().numpy().swapaxes(0, 1):
            h = np.einsum("dnm,bdm->bdn", self.A, h) + self.B * token[..., None]
            outputs.append((self.C * h).sum(-1).real + self.D * token)
            half = h[..., : h.shape[-1] // 2]
            states.append(np.stack([half.real, half.imag], axis=-1))
        return torch.from_numpy(np.stack(outputs, 1)), torch.from_numpy(np.stack(states, 1))


def full(x):
    """Real pairs (..., n, 2) -> the 2 n complex numbers they stand for."""
    z = x.double().numpy()[..., 0] + 1j * x.double().numpy()[..., 1]
    return np.concatenate([z, z.conj()], axis=-1)


def hippo(d=4, n=64, dtype=torch.float64, seed=0):
    """Parameters as at the start of training: keyword arguments of s4_scan."""
    g = torch.Generator().manual_seed(seed)
    Lambda, P, B = (x.expand(d, -1, -1) for x in dplr("legs", n))
    C, D = torch.randn(d, n // 2, 2, generator=g), torch.randn(d, generator=g)
    dt = torch.logspace(-3, -1, d, dtype=torch.float64)
    values = (x.to(dtype) for x in (Lambda, P, B, C, D, dt))
    return dict(zip(NAMES, values, strict=True))


def anything(d=3, n=6, dtype=torch.float64, seed=0):
    """Parameters of no particular structure, each channel and each number its own."""
    g = torch.Generator().manual_seed(seed)
    Lambda, P, B, C = (torch.randn(d, n // 2, 2, generator=g, dtype=torch.float64) for _ in range(4))
    Lambda = torch.stack([-Lambda[..., 0].exp(), 20 * Lambda[..., 1]], dim=-1)
    D, dt = torch.randn(d, generator=g), torch.rand(d, generator=g) * 0.3 + 0.01
    values = (x.to(dtype) for x in (Lambda, P, B, C, D, dt))
    return dict(zip(NAMES, values, strict=True))


def draw(p, b, t, dtype=torch.float64, seed=1):
    """Input (b, t, d) and state (b, d, n, 2) for parameters p."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, t, len(p["D"]), generator=g, dtype=torch.float64)
    return x.to(dtype), torch.randn(b, *p["C"].shape, generator=g, dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------- convolution = recurrence = dense
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("t", [1, 2, 7, 63, 64, 65, 128, 129, 1000, 4096])
def test_kernel_equals_the_dense_system(t, dtype):
    p = hippo(dtype=dtype)
    impulse, state = torch.zeros(1, t, 4), torch.zeros(1, 4, 32, 2)
    impulse[:, 0] = 1
    expected, _ = Dense(**(p | {"D": torch.zeros(4)}))(impulse, state)
    K = s4_kernel(**{name: p[name] for name in NAMES if name != "D"}, length=t)
    assert K.dtype == torch.float64
    check(K.T[None], expected, 1e-12)


@pytest.mark.parametrize(
    ("parameters", "dtype", "t"), cases([hippo, anything], LIMIT, [1, 7, 1000, 4096], kept=(hippo, torch.float32))
)
def test_convolution_equals_recurrence_equals_dense(parameters, t, dtype):
    p = parameters(dtype=dtype)
    x, state = draw(p, 2, t, dtype)
    expected, states = Dense(**p)(x, state)
    y, after = s4_scan(x, **p, state=state)
    check(y, expected, LIMIT[dtype])
    check(after[:, None], states[:, -1:], LIMIT[dtype])
    outputs = []
    for token in x.split(1, dim=1):
        y, state = s4_scan(token, **p, state=state)
        outputs.append(y)
    check(torch.cat(outputs, dim=1), expected, LIMIT[dtype])
    check(state[:, None], states[:, -1:], LIMIT[dtype])
    fresh, nothing = s4_scan(x, **p)
    assert nothing is None
    check(fresh, Dense(**p)(x, torch.zeros_like(state))[0], LIMIT[dtype])


@pytest.mark.parametrize("split", range(1, 33))
def test_hand_over_at_every_token(split):
    p = anything()
    x, state = draw(p, 2, 33)
    expected, states = Dense(**p)(x, state)
    first, middle = s4_scan(x[:, :split], **p, state=state)
    check(middle[:, None], states[:, split - 1 : split], 1e-12)
    second, last = s4_scan(x[:, split:], **p, state=middle)
    check(torch.cat([first, second], dim=1), expected, 1e-12)
    check(last[:, None], states[:, -1:], 1e-12)


@pytest.mark.parametrize("pieces", [[70, 1, 64, 65], [1, 2, 2, 3, 1], [5, 130, 9]])
def test_hand_over_across_blocks(pieces):
    p = hippo(n=16)
    x, state = draw(p, 1, sum(pieces))
    expected, states = Dense(**p)(x, state)
    outputs = []
    for piece in x.split(pieces, dim=1):
        y, state = s4_scan(piece, **p, state=state)
        outputs.append(y)
    check(torch.cat(outputs, dim=1), expected, 1e-12)
    check(state[:, None], states[:, -1:], 1e-12)


def test_the_kernel_belongs_to_no_length():
    p = {name: value for name, value in hippo().items() if name != "D"}
    long = s4_kernel(**p, length=500)
    for length in (1, 3, 64, 100, 256):
        torch.testing.assert_close(s4_kernel(**p, length=length), long[:, :length], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 9])
def test_every_number_counts(name, t):
    """The same numbers in another order are another system: a parameter that is read wrongly would be seen above."""
    p = anything()
    x, state = draw(p, 1, t)
    mixed = p | {name: p[name].flatten().roll(1).reshape(p[name].shape)}
    if name == "Lambda":  # real parts must stay negative
        mixed[name] = p[name].roll(1, dims=1)
    assert (s4_scan(x, **mixed, state=state)[0] - s4_scan(x, **p, state=state)[0]).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------- rows and documents
@pytest.mark.parametrize("t", [1, 9, 70])
def test_ragged_rows_stop_at_their_last_valid_token(t):
    p = anything()
    lengths = torch.tensor([0, t, 1, t // 2, max(1, t - 1)])
    x, state = draw(p, 5, t)
    expected, states = Dense(**p)(x, state)
    x = torch.where(torch.arange(t)[:, None] < lengths[:, None, None], x, 1e4)
    y, after = s4_scan(x, **p, state=state, lengths=lengths)
    states = torch.cat([state[:, None], states], dim=1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(after[row], states[row, length], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(y[row, :length], expected[row, :length], rtol=1e-10, atol=1e-8)
    assert torch.equal(after[0], state[0])


@given(st.data())
def test_packed_documents_equal_documents_apart(data):
    t = data.draw(st.sampled_from([1, 2, 17, 66]))
    steps = data.draw(st.lists(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=t, max_size=t), min_size=1, max_size=3))
    lengths = torch.tensor([data.draw(st.integers(0, t)) for _ in steps])
    valid = torch.arange(t) < lengths[:, None]
    document = (torch.tensor(steps) * valid).cumsum(dim=1)
    p = anything()
    x, state = draw(p, len(steps), t)
    y, after = s4_scan(torch.where(valid[..., None], x, 0), **p, state=state, lengths=lengths, document=document)
    expected, states = apart(Dense(**p), x, state, document, lengths)
    torch.testing.assert_close(torch.where(valid[..., None], y, 0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(after, states, rtol=0, atol=1e-11)


def test_one_token_begins_or_continues_a_document():
    p = anything()
    x, state = draw(p, 4, 1)
    document, lengths = torch.tensor([[0], [1], [0], [1]]), torch.tensor([1, 1, 0, 1])
    y, after = s4_scan(x, **p, state=state, lengths=lengths, document=document)
    expected, states = apart(Dense(**p), x, state, document, lengths)
    torch.testing.assert_close((y[lengths > 0], after), (expected[lengths > 0], states), rtol=0, atol=1e-12)


@pytest.mark.parametrize("state", [False, True])
def test_documents_share_no_gradient(state):
    p = anything()
    x, h = draw(p, 1, 20)
    x.requires_grad_()
    h.requires_grad_()
    document = torch.tensor([[0] * 6 + [1] * 7 + [2] * 7])
    y, after = s4_scan(x, **p, state=h if state else None, document=document)
    (only,) = torch.autograd.grad(y[:, 6:13].square().sum(), x, retain_graph=True)
    assert not only[:, :6].any()
    assert not only[:, 13:].any()
    assert only[:, 6:13].all()
    if state:
        last, start = torch.autograd.grad(after.square().sum() + y[:, 6:].sum(), [x, h])
        assert not last[:, :6].any()
        assert not start.any()


# ------------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("t", [1, 6, 70])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(t, packed):
    p = {name: value.requires_grad_() for name, value in anything(d=2, n=4).items()}
    x, state = (tensor.requires_grad_() for tensor in draw(p, 2, t))
    document = torch.zeros(2, t, dtype=torch.int64)
    document[1, t // 2 :] = 1
    more = {"lengths": torch.tensor([t, (t + 1) // 2]), "document": document} if packed else {}

    def run(x, state, *values):
        y, after = s4_scan(x, **dict(zip(NAMES, values, strict=True)), state=state, **more)
        fresh, _ = s4_scan(x, **dict(zip(NAMES, values, strict=True)))
        return y.mT, after, fresh

    assert torch.autograd.gradcheck(run, (x, state, *p.values()), fast_mode=True)


def test_vmap():
    p = anything()
    x, state = draw(p, 3, 9)
    y, after = torch.func.vmap(lambda row, h: s4_scan(row[None], **p, state=h[None]))(x, state)
    expected, states = s4_scan(x, **p, state=state)
    torch.testing.assert_close((y[:, 0], after[:, 0]), (expected, states), rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------------- extremes
@pytest.mark.parametrize("t", [1, 100])
def test_a_step_of_zero_holds_the_state(t):
    p = hippo() | {"dt": torch.zeros(4, dtype=torch.float64)}
    x, state = draw(p, 1, t)
    y, after = s4_scan(x, **p, state=state)
    torch.testing.assert_close(after, state, rtol=0, atol=0)
    held = 2 * (p["C"][..., 0] * state[..., 0] - p["C"][..., 1] * state[..., 1]).sum(-1)
    torch.testing.assert_close(y, p["D"] * x + held[:, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 100])
@pytest.mark.parametrize(("dt", "limit"), [(1e-12, 1e-12), (1e-6, 1e-12), (1.0, 1e-12), (1e3, 1e-10)])
def test_extremes_are_finite_and_right(dt, limit, t):
    """At dt = 1e3 eigenvalues of Abar come within 4e-3 of -1, and any float64 Abar is that much less certain."""
    p = hippo() | {"dt": torch.full((4,), dt, dtype=torch.float64)}
    p = {name: value.requires_grad_() for name, value in p.items()}
    x, state = draw(p, 1, t)
    x = (1e4 * x).requires_grad_()
    y, after = s4_scan(x, **p, state=state)
    expected, states = Dense(**{name: value.detach() for name, value in p.items()})(x.detach(), state)
    check(y, expected, limit)
    check(after[:, None], states[:, -1:], limit)
    (y.square().mean() + after.square().mean()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *p.values()))


@pytest.mark.parametrize("real", [-1e-300, -1e-12, -1e-6])
def test_waves_that_hardly_fade(real):
    """Poles of the generating function at roots of unity, 1 among them: there its Cauchy sums are 1/0."""
    p = anything(d=2)
    turns = torch.tensor([[0, 3, 31], [1, 16, 30]], dtype=torch.float64)
    p["Lambda"][..., 0], p["P"][:] = real, 0
    p["Lambda"][..., 1] = 2 / p["dt"][:, None] * torch.tan(torch.pi / 64 * turns)
    x, state = draw(p, 2, 200)
    expected, states = Dense(**p)(x, state)
    y, after = s4_scan(x, **p, state=state)
    check(y, expected, 1e-12)
    check(after[:, None], states[:, -1:], 1e-12)


def test_small_steps_keep_their_precision():
    """I - Abar is never a difference from I: at dt = 1e-9 a plain 1 - Abar would keep seven digits."""
    p = hippo() | {"dt": torch.full((4,), 1e-9).double(), "D": torch.zeros(4)}
    impulse, state = torch.zeros(1, 200, 4), torch.zeros(1, 4, 32, 2)
    impulse[:, 0] = 1
    expected, _ = Dense(**p)(impulse, state)
    del p["D"]
    check(s4_kernel(**p, length=200).T[None], expected, 1e-12)


def test_half_precision_input_keeps_a_float32_state():
    p = hippo(dtype=torch.float32)
    x, state = draw(p, 2, 40, torch.float32)
    y, after = s4_scan(x.bfloat16(), **p, state=state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    exact, states = Dense(**p)(x.bfloat16(), state)
    check(y, exact, 2 * 1.66e-3)
    check(after[:, None], states[:, -1:], 2e-6)


def test_repeats_bit_for_bit():
    p = hippo(dtype=torch.float32)
    x, state = draw(p, 2, 300, torch.float32)
    first = s4_scan(x, **p, state=state)
    assert all(torch.equal(*pair) for _ in range(3) for pair in zip(first, s4_scan(x, **p, state=state), strict=True))


def test_inputs_are_left_alone():
    p = hippo(dtype=torch.float32)
    x, state = draw(p, 2, 30, torch.float32)
    kept = [tensor.clone() for tensor in (x, state, *p.values())]
    s4_scan(x, **p, state=state)
    s4_scan(x[:, :1], **p, state=state)
    assert all(torch.equal(*pair) for pair in zip(kept, (x, state, *p.values()), strict=True))


# ----------------------------------------------------------------------------------------------------------------- cost
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("n", "t"), [(4, 1), (16, 2), (16, 7), (8, 64), (8, 65), (4, 200), (64, 1000)])
def test_flops_are_those_that_are_done(n, t, state):
    p = hippo(d=3, n=n)
    x, h = draw(p, 1, t)
    with FlopCounterMode(display=False) as counter:
        s4_scan(x, **p, state=h if state else None)
    assert s4_flops(3, n, t, state)[0] == counter.get_total_flops()


def test_flops_by_hand():
    """d = 2, N = 4, t = 3: FFTs of length 6, one block of 4 tokens; E_1, E_2, C E_2, 3 roots for [C, P] x [B, P]."""
    products = 2 * 4**3 + 1 * 4**2 + 2 * 4 * (2 * 2 * 3)
    ffts = 3 * 2.5 * 6 * np.log2(6) + 2.5 * 4 * np.log2(4)
    assert s4_flops(2, 4, 3, False) == (2 * 2 * products, 0, pytest.approx(2 * ffts))
    assert s4_flops(2, 4, 1, True) == (0, 2 * (24 * 2 + 2), 0)


def test_no_loop_over_time():
    p = hippo(n=8)
    counts = []
    for t in (64, 4096):
        x, state = draw(p, 1, t)
        with Calls() as calls:
            s4_scan(x, **p, state=state)
        counts.append(calls.number)
    assert counts[1] - counts[0] < 30 * 6  # six more doublings, a handful of operations each


def test_a_backend_that_is_missing_is_refused():
    p = anything()
    x, _ = draw(p, 1, 4)
    with pytest.raises(UnsupportedError, match="s4_scan"):
        s4_scan(x, **p, backend="vendor")
    del p["D"]
    with pytest.raises(UnsupportedError, match="s4_kernel"):
        s4_kernel(**p, length=4, backend="triton")
