"""Steps, kernels and online reconstruction against loops, quadrature and the theory's figures."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from hybridlm.errors import SpecError
from hybridlm.ops.hippo import (
    MEASURES,
    METHODS,
    basis,
    discretize,
    discretize_scaled,
    dplr,
    kernel,
    nplr,
    project,
    project_scaled,
    reconstruct,
    transition,
    weight,
)
from hybridlm.ops.ssm_kernel import s4_kernel
from tests.ops.common import Calls
from tests.oracles.hippo import full, functions, quadrature

F64 = torch.float64
SIZES = (4, 8, 16, 32, 64, 128)


def loop(Abar, Bbar, f):
    """x_k = Abar_k x_{k-1} + Bbar_k f_k, one after the other: Abar (t, n, n), Bbar (t, n), f (b, t) numpy."""
    x, states = np.zeros((len(f), Bbar.shape[1])), []
    for A, B, sample in zip(Abar, Bbar, f.T, strict=True):
        x = x @ A.T + sample[:, None] * B
        states.append(x)
    return np.stack(states, axis=1)


def exponential(A):
    """e^A by the plain series, of A / 2^5, and squared five times. Numpy, n small."""
    term = total = np.eye(len(A)) * 1.0
    for i in range(1, 30):
        term = term @ A / 2**5 / i
        total = total + term
    for _ in range(5):
        total = total @ total
    return total


def noise(b, t):
    return torch.randn(b, t, dtype=F64)


# --------------------------------------------------------------------------------------------------------------- basis
@pytest.mark.parametrize("measure", MEASURES)
def test_basis_is_the_textbooks(measure):
    s = np.linspace(0, 1 if measure in ("legt", "fourier") else 8, 50)
    expected = functions(measure, 12, s)
    np.testing.assert_allclose(basis(measure, 12, torch.from_numpy(s)), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(basis(measure, 2, torch.from_numpy(s)), expected[:, :2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_basis_is_orthonormal_against_its_measure(measure):
    """The sine of frequency 0 is the one function that is not there."""
    s, weights = quadrature(measure)
    p = basis(measure, 24, torch.from_numpy(s)).numpy()
    gram = p.T @ (p * weights[:, None])
    expected = np.diag([0.0 if (measure, i) == ("fourier", 1) else 1.0 for i in range(24)])
    np.testing.assert_allclose(gram, expected, rtol=0, atol=2e-12)
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_weights():
    s = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1], dtype=F64)
    for measure in ("legs", "lagt"):
        torch.testing.assert_close(weight(measure, s), torch.cat([torch.zeros(1, dtype=F64), torch.exp(-s[1:])]))
    for measure in ("legt", "fourier"):
        assert weight(measure, s).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_signal_of_the_basis_comes_back(measure, rng):
    s, weights = quadrature(measure)
    x = torch.randn(2, 3, 8, generator=rng, dtype=F64)
    x[..., 1] *= measure != "fourier"
    f = reconstruct(measure, x, torch.from_numpy(s))
    assert f.shape == (2, 3, len(s))
    np.testing.assert_allclose((f.numpy() * weights) @ functions(measure, 8, s), x, rtol=0, atol=2e-12)


# ------------------------------------------------------------------------------------------------------------- kernels
@pytest.mark.parametrize("measure", ["legs", "lagt"])
def test_kernel_is_basis_times_measure(measure):
    """e^{sA} B = p(s) w(s): for LegS sqrt(2i+1) e^-s P_i(2 e^-s - 1). Seen at n = 64: 6e-13."""
    s = np.linspace(0, 6, 80)
    expected = functions(measure, 64, s) * np.exp(-s)[:, None]
    np.testing.assert_allclose(kernel(measure, 64, torch.from_numpy(s)), expected, rtol=0, atol=2e-12)


@pytest.mark.parametrize(("measure", "i"), [("legt", 0), ("legt", 3), ("fourier", 0), ("fourier", 2), ("fourier", 3)])
def test_kernels_of_a_window_near_the_basis(measure, i):
    """p_i on [0, 1] and nothing after: the error falls with n, by more than 1.5 from n = 8 to 32 to 128."""
    s = (torch.arange(200, dtype=F64) + 0.5) / 100
    wanted = basis(measure, 8, s)[:, i] * weight(measure, s)
    errors = [(kernel(measure, n, s)[:, i] - wanted).square().mean().sqrt().item() for n in (8, 32, 128)]
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[2] < 0.06


# --------------------------------------------------------------------------------------------------------------- steps
@pytest.mark.parametrize("measure", MEASURES)
def test_steps_by_hand(measure):
    A, B = (m.numpy() for m in transition(measure, 6))
    dt, I = 0.03, np.eye(6)  # noqa: E741
    s, weights = legendre.leggauss(20)
    held = sum(w / 2 * dt * exponential((x + 1) / 2 * dt * A) @ B for x, w in zip(s, weights, strict=True))
    expected = {
        "bilinear": (np.linalg.inv(I - dt / 2 * A) @ (I + dt / 2 * A), np.linalg.inv(I - dt / 2 * A) @ B * dt),
        "euler": (I + dt * A, dt * B),
        "backward": (np.linalg.inv(I - dt * A), np.linalg.inv(I - dt * A) @ B * dt),
        "zoh": (exponential(dt * A), held),
    }
    assert set(expected) == set(METHODS)
    for method, (Abar, Bbar) in expected.items():
        found = discretize(*transition(measure, 6), dt, method)
        np.testing.assert_allclose(found[0], Abar, rtol=0, atol=1e-13)
        np.testing.assert_allclose(found[1], Bbar, rtol=0, atol=1e-13)


def test_zoh_where_a_has_no_inverse():
    """A double integrator: A is nilpotent, (e^A - I) A^-1 B does not exist, Bbar = (dt^2/2, dt) does."""
    A, B = torch.tensor([[0.0, 1], [0, 0]], dtype=F64), torch.tensor([0.0, 1], dtype=F64)
    Abar, Bbar = discretize(A, B, 0.5, "zoh")
    torch.testing.assert_close(Abar, torch.tensor([[1, 0.5], [0, 1]], dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(Bbar, torch.tensor([0.125, 0.5], dtype=F64), rtol=0, atol=1e-15)
    for method in METHODS:
        assert torch.equal(discretize(0 * A, B, 0.5, method)[1], 0.5 * B)


@pytest.mark.parametrize(("method", "order"), [("bilinear", 2), ("euler", 1), ("backward", 1)])
def test_methods_have_their_order(method, order):
    """The state at time 1 of a constant input, against zoh, which is exact for it: dt halved twice."""

    def after_one(steps, method):
        f = torch.ones(1, steps, dtype=F64)
        return project("legt", f, 6, 1 / steps, method)[0, -1]

    errors = [(after_one(steps, method) - after_one(steps, "zoh")).norm().item() for steps in (1000, 2000, 4000)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_steps_of_the_scaled_system(method):
    """HiPPO, appendix B.3: the matrices of A/k and B/k; zoh integrates 1/t as well, e^{A log(k/(k-1))}."""
    A, B = (m.numpy() for m in transition("legs", 8))
    Abar, Bbar = discretize_scaled(8, torch.tensor([2, 5, 1000]), method)
    for k, a, b in zip([2, 5, 1000], Abar, Bbar, strict=True):
        if method == "zoh":
            expected = exponential(A * math.log(k / (k - 1)))
            input_matrix = np.linalg.solve(A, (expected - np.eye(8)) @ B)
        else:
            expected, input_matrix = discretize(*transition("legs", 8), 1 / k, method)
            input_matrix = discretize(torch.tensor(A), torch.tensor(B), 1 / k, method)[1]
        np.testing.assert_allclose(a, expected, rtol=0, atol=1e-11)
        np.testing.assert_allclose(b, input_matrix, rtol=0, atol=1e-11)


# -------------------------------------------------------------------------------------------------------------- online
@pytest.mark.parametrize("t", [1, 2, 3, 7, 64, 101])
@pytest.mark.parametrize("measure", MEASURES)
def test_states_are_those_of_a_loop(measure, t):
    f = noise(3, t)
    for method in ("bilinear", "zoh", "backward"):
        Abar, Bbar = (m.numpy() for m in discretize(*transition(measure, 10), 0.02, method))
        expected = loop(np.tile(Abar, (t, 1, 1)), np.tile(Bbar, (t, 1)), f.numpy())
        states = project(measure, f, 10, 0.02, method)
        assert (states.shape, states.dtype) == ((3, t, 10), F64)
        np.testing.assert_allclose(states, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("t", [1, 2, 3, 50, 101])
@pytest.mark.parametrize("method", METHODS)
def test_scaled_states_are_those_of_a_loop(method, t, block, monkeypatch):
    """block: steps of a block, so that states are handed on."""
    if block:
        monkeypatch.setattr("hybridlm.ops.hippo.online.BLOCK", block * 6**2)
    f = noise(2, t)
    expected = loop(*(m.numpy() for m in discretize_scaled(6, torch.arange(1, t + 1), method)), f.numpy())
    states = project_scaled(f, 6, method)
    assert (states.shape, states.dtype) == ((2, t, 6), F64)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_scaled_states_are_projections_of_the_whole_past():
    """Held samples, projected on Legendre polynomials of [0, k] piece by piece with Gauss's rule: zoh is exact."""
    f, n = noise(2, 40), 24
    states = project_scaled(f, n, "zoh").numpy()
    nodes, weights = legendre.leggauss(n)
    for k in (1, 2, 17, 40):
        u = (np.arange(k)[:, None] + (nodes + 1) / 2) / k
        q = legendre.legval(2 * u - 1, np.eye(n)) * np.sqrt(2 * np.arange(n) + 1)[:, None, None]
        expected = np.einsum("bk,nkj,j->bn", f[:, :k].numpy(), q, weights / 2) / k
        np.testing.assert_allclose(states[:, k - 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_states_near_the_projection(measure):
    """A smooth signal, sampled in the middle of short steps: the state is the integral that defines it, to O(dt^2).

    For legt the signal is all but a polynomial on a window, and the silence before it is long forgotten.
    """
    t, dt, n = 30.0, 1e-2, 6
    signal = (
        (lambda u: np.cos(0.3 * u)) if measure == "legt" else (lambda u: np.sin(u) * np.exp(-((u - 20) ** 2) / 200))
    )
    middles = (torch.arange(round(t / dt), dtype=F64) + 0.5) * dt
    state = project(measure, torch.from_numpy(signal(middles.numpy()))[None], n, dt)[0, -1]
    s, weights = quadrature(measure)
    expected = (signal(t - s) * (s < t) * weights) @ functions(measure, n, s)
    np.testing.assert_allclose(state, expected, rtol=0, atol=2e-3)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("run", [lambda f: project("legt", f, 6, 0.1), lambda f: project_scaled(f, 6)])
def test_no_loop_over_time(run):
    counts = []
    for t in (64, 4096):
        with Calls() as calls:
            run(noise(1, t))
        counts.append(calls.number)
    assert counts[1] - counts[0] < 40 * 6  # six more halvings, some operations each


@pytest.mark.parametrize("method", METHODS)
def test_nothing_was_read(method):
    assert project("lagt", noise(2, 0), 4, 0.1, method).shape == (2, 0, 4)
    assert project_scaled(noise(2, 0), 4, method).shape == (2, 0, 4)


@pytest.mark.parametrize("n", [8, 64, 200])
def test_zoh_of_long_steps(n):
    """e^{dt A} of LegS for dt = log 2 and log 10, where |A| dt is in the thousands, against Gauss's quadrature."""
    for r in (0.5, 0.1):
        Abar, Bbar = discretize(*transition("legs", n), -math.log(r), "zoh")
        nodes, weights = legendre.leggauss(n)
        q = [functions("legt", n, 1 - scale * (nodes + 1) / 2) for scale in (r, 1)]
        expected = r * (q[0].T * weights / 2) @ q[1]
        np.testing.assert_allclose(Abar, expected, rtol=0, atol=1e-11)
        np.testing.assert_allclose(Bbar, np.eye(n)[0] - expected[:, 0], rtol=0, atol=1e-11)


def four_sines(u):
    return sum(torch.sin(2 * math.pi * w * u + w) for w in (1, 2, 3, 5))


def error(signal, n, method, samples=1000):
    """Relative RMS error of the past [0, 1] that the last state stands for."""
    u = (torch.arange(samples, dtype=F64) + 0.5) / samples
    state = project_scaled(signal(u)[None], n, method)[0, -1]
    return ((reconstruct("legs", state, -torch.log(u)) - signal(u)).norm() / signal(u).norm()).item()


def left_out(n):
    """The same in theory: sin(2 pi w u + w) has the Legendre coefficients sqrt(2i+1) j_i(pi w), up to their phases,

    and |j_i(z)| <= z^i / (2i+1)!!, which falls faster than any power once i is beyond z: an upper bound for `error`.
    """

    def tail(w):
        bounds, bessel = [], 1.0
        for i in range(300):
            bounds.append((2 * i + 1) * min(bessel, 1 / (math.pi * w)) ** 2)  # |j_i(z)| <= 1/z as well
            bessel *= math.pi * w / (2 * i + 3)
        return math.sqrt(sum(bounds[n:]))

    return sum(tail(w) for w in (1, 2, 3, 5)) / math.sqrt(4 / 2)


def test_error_of_reconstruction_falls_with_n_as_the_theory_says():
    """HiPPO-LegS, 1000 samples of four sines, n = 4 .. 128.

    HiPPO, proposition 6: for a signal of bounded derivative of order k the error is O(t^k L^k / n^(k-1/2)); a
    band-limited one has all of them, so its error falls faster than any power: here from n = 16 to 32, where n passes
    pi x 5 cycles. What is left is the discretisation's: 1e-4 for zoh, which is exact for the held samples, and about
    1e-2 for the bilinear rule, whose first steps take 1/k for 1/t.
    """
    zoh, bilinear = ([error(four_sines, n, method) for n in SIZES] for method in ("zoh", "bilinear"))
    assert all(fine < coarse for coarse, fine in itertools.pairwise(zoh[:4]))
    assert [round(e, 3) for e in zoh[:3]] == [0.778, 0.550, 0.169]
    assert zoh[3] < 0.169 * 2**-11  # one doubling of n: more than the eleventh power
    assert max(zoh[3:]) < 2e-4
    assert bilinear[:3] == pytest.approx(zoh[:3], rel=0.01)
    assert all(0.005 < e < 0.03 for e in bilinear[3:])
    assert all(e <= left_out(n) + 2e-4 for n, e in zip(SIZES, zoh, strict=True))
    assert left_out(32) < 1e-3


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_the_floor_is_the_discretisation(method):
    """At n = 32, from 500 samples to 2000: zoh's floor falls with the square, the bilinear rule's in proportion."""
    ratio = error(four_sines, 32, method, 500) / error(four_sines, 32, method, 2000)
    assert (10 < ratio < 20) if method == "zoh" else (3 < ratio < 4.5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rough_signals_fall_at_the_rate_of_their_smoothness(k):
    """max(0, u - c)^k has a bounded derivative of order k and no more: at least n^-(k - 1/2). Seen: n^-(k + 1/2)."""
    errors = [error(lambda u: (u - 0.37).relu() ** k, n, "zoh", 4000) for n in (8, 16, 32)]
    rate = math.log(errors[0] / errors[-1]) / math.log(4)
    assert k - 0.5 < rate < k + 1.1


def test_bilinear_kernel_of_s4_is_the_dense_systems():
    """LegS at 64 states with any C: K_i = C Abar^i Bbar with the full matrix, not its diagonal and low rank."""
    n, t = 64, 1000
    C, dts = torch.randn(3, n, dtype=F64), torch.tensor([1e-3, 1e-2, 1e-1], dtype=F64)
    K = s4_kernel(*(x.expand(3, -1, -1) for x in dplr("legs", n)), rotated(C), dts, t)
    for row, c, dt in zip(K, C.numpy(), dts.tolist(), strict=True):
        A, B = (m.numpy() for m in transition("legs", n))
        left = np.eye(n) - dt / 2 * A
        Abar, x, expected = np.linalg.solve(left, np.eye(n) + dt / 2 * A), np.linalg.solve(left, dt * B), []
        for _ in range(t):
            expected.append(c @ x)
            x = Abar @ x
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def rotated(C):
    """Rows C (d, n) of LegS's own basis in that of `dplr`: C V as real pairs (d, n/2, 2)."""
    V = full(nplr("legs", C.shape[1])[3])
    return torch.view_as_real(torch.from_numpy(C.numpy() @ V))


@pytest.mark.parametrize(("n", "dt", "t"), [(64, 1e-8, 4096), (8, 1e-5, 2**17)])
def test_kernel_of_s4_is_the_matrix_exponential(n, dt, t):
    """K_i / dt = C e^{(i + 1/2) dt A} B to 1e-8, with a dt that resolves the fastest state. Seen: 5e-9."""
    C = torch.randn(1, n, dtype=F64)
    K = s4_kernel(*(x[None] for x in dplr("legs", n)), rotated(C), torch.tensor([dt], dtype=F64), t)[0]
    at = torch.arange(0, t, t // 64)
    A, B = transition("legs", n)
    expected = torch.linalg.matrix_exp((at + 0.5).double()[:, None, None] * dt * A) @ B @ C[0]
    torch.testing.assert_close(K[at] / dt, expected, rtol=0, atol=1e-8 * expected.abs().max().item())


def test_kernel_of_s4_nears_the_exponential_with_the_square_of_the_step():
    """The same times with a third of the step: (3i + 1 + 1/2) dt/3 = (i + 1/2) dt. The error falls by nine."""
    C, errors = torch.randn(1, 16, dtype=F64), []
    A, B = transition("legs", 16)
    for thirds in (0, 1, 2):
        dt, stride = 2e-3 / 3**thirds, 3**thirds
        K = s4_kernel(*(x[None] for x in dplr("legs", 16)), rotated(C), torch.tensor([dt], dtype=F64), 500 * stride)[0]
        times = (torch.arange(500) + 0.5).double() * 2e-3
        expected = torch.linalg.matrix_exp(times[:, None, None] * A) @ B @ C[0]
        errors.append((K[stride // 2 :: stride] / dt - expected).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(9, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(9, rel=0.05)


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discretize(*transition("legs", 4), 0.1, "bilinar"), "method: 'bilinar'; .*Did you mean 'bilinear'"),
        (lambda: discretize(*transition("legs", 4), 0.0), "dt: 0.0 is out of range"),
        (lambda: discretize(*transition("legs", 4), math.nan), "dt: nan is not a finite number"),
        (lambda: discretize_scaled(4, torch.tensor([1, 0])), "k: 0; steps are counted from 1"),
        (lambda: discretize_scaled(0, torch.tensor([1])), "n: 0 is out of range"),
        (lambda: project("legs", torch.ones(1, 3), 4, -1.0), "dt: -1.0"),
        (lambda: project("leg", torch.ones(1, 3), 4, 0.1), "measure: 'leg'"),
        (lambda: project_scaled(torch.ones(1, 3), 0), "n: 0 is out of range"),
        (lambda: project_scaled(torch.ones(1, 3), -2), "n: -2 is out of range"),
        (lambda: project_scaled(torch.ones(1, 3), True), "n: True is not an integer"),
        (lambda: project_scaled(torch.ones(1, 3), 4, "zho"), "method: 'zho'; .*Did you mean 'zoh'"),
        (lambda: basis("legz", 4, torch.ones(2)), "measure: 'legz'"),
        (lambda: basis("legs", 0, torch.ones(2)), "n: 0"),
        (lambda: basis("fourier", 3, torch.ones(2)), "n: 3 is odd"),
        (lambda: weight("hippo", torch.ones(2)), "measure: 'hippo'"),
        (lambda: kernel("lag", 4, torch.ones(2)), "Did you mean 'lagt'"),
        (lambda: reconstruct("legss", torch.ones(2, 4), torch.ones(2)), "Did you mean 'legs'"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(SpecError, match=message):
        call()
