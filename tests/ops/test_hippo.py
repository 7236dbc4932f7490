"""HiPPO's systems against their definition: projections computed by quadrature, with polynomials of numpy's own."""

import numpy as np
import pytest
import torch

from hybridlm.errors import SpecError
from hybridlm.ops.hippo import KINDS, MEASURES, diagonal, dplr, nplr, transition
from tests.oracles.hippo import full, functions, quadrature

F64 = torch.float64


SIGNALS = {  # f and f', of which a state of six knows all that A assumes
    "legs": (lambda t: np.exp(-(t**2)), lambda t: -2 * t * np.exp(-(t**2))),
    "legt": (lambda t: 3 * t**5 - t**3 + 2, lambda t: 15 * t**4 - 3 * t**2),
    "lagt": (lambda t: np.sin(3 * t) + t, lambda t: 3 * np.cos(3 * t) + 1),
    "fourier": (
        lambda t: 2 + np.cos(2 * np.pi * t) + np.sin(4 * np.pi * t),
        lambda t: 2 * np.pi * (2 * np.cos(4 * np.pi * t) - np.sin(2 * np.pi * t)),
    ),
}


# ------------------------------------------------------------------------------------------------------------ measures
@pytest.mark.parametrize("t", [0.3, 2.0])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_projection_obeys_the_system(measure, t):
    """x_i(t) = int f(t - s) p_i(s) w(s) ds, and x' with f' in place of f: x' = A x + B f(t).

    Exact for every f with legs and lagt. A window has to guess f(t - 1) from the state: exact for polynomials of degree
    below n with legt, for waves of period 1 below n/2 with fourier.
    """
    f, df = SIGNALS[measure]
    s, weights = quadrature(measure)
    p = functions(measure, 6, s) * weights[:, None]
    x, dx = f(t - s) @ p, df(t - s) @ p
    A, B = (m.numpy() for m in transition(measure, 6))
    np.testing.assert_allclose(A @ x + B * f(t), dx, rtol=0, atol=1e-12 * np.abs(A * x).max())


def test_the_published_matrices():
    """S4 (2021), eq. 2; HiPPO (2020), theorem 1 for LegT (lambda_n = 1, theta = 1) and LagT."""
    a, b, c = 3**0.5, 5**0.5, 15**0.5
    A, B = transition("legs", 3)
    torch.testing.assert_close(A, torch.tensor([[-1, 0, 0], [-a, -2, 0], [-b, -c, -3]], dtype=F64))
    torch.testing.assert_close(B, torch.tensor([1, a, b], dtype=F64))
    A, B = transition("legt", 3)
    torch.testing.assert_close(A, torch.tensor([[-1, a, -b], [-a, -3, c], [-b, -c, -5]], dtype=F64))
    torch.testing.assert_close(B, torch.tensor([1, a, b], dtype=F64))
    A, B = transition("lagt", 3)
    torch.testing.assert_close(A, torch.tensor([[-1, 0, 0], [-1, -1, 0], [-1, -1, -1]], dtype=F64))
    torch.testing.assert_close(B, torch.ones(3, dtype=F64))


def test_the_published_fourier_matrix():
    """How to Train Your HiPPO, HiPPO-FouT, without the sine of frequency 0: -2, -2 sqrt 2, -4 and turns of 2 pi k."""
    A, B = transition("fourier", 6)
    assert not A[1].any()
    assert not A[:, 1].any()
    assert B[1] == 0
    kept, r, w = [0, 2, 3, 4, 5], 2 * 2**0.5, 2 * np.pi
    expected = [[-2, -r, 0, -r, 0], [-r, -4, -w, -4, 0], [0, w, 0, 0, 0], [-r, -4, 0, -4, -2 * w], [0, 0, 0, 2 * w, 0]]
    torch.testing.assert_close(A[kept][:, kept], torch.tensor(expected, dtype=F64))
    torch.testing.assert_close(B[kept], torch.tensor([2, r, 0, r, 0], dtype=F64))


# ----------------------------------------------------------------------------------------------------------- structure
@pytest.mark.parametrize("n", [2, 4, 10, 64])
@pytest.mark.parametrize("measure", MEASURES)
def test_normal_plus_low_rank(measure, n):
    """A = V (diag(Lambda) - P P^*) V^* and B = V b, V unitary: all of it put together again."""
    A, B = (m.numpy() for m in transition(measure, n))
    Lambda, P, b, V = (full(x) for x in nplr(measure, n))
    assert P.shape == (2 if measure == "legt" else 1, n // 2)
    Lambda, P, b, V = (np.concatenate([x, x.conj()], axis=-1) for x in (Lambda, P, b, V))
    np.testing.assert_allclose(V.conj().T @ V, np.eye(n), rtol=0, atol=2e-13)
    np.testing.assert_allclose(V @ (np.diag(Lambda) - P.T @ P.conj()) @ V.conj().T, A, atol=2e-14 * np.abs(A).max())
    np.testing.assert_allclose(V @ b, B, rtol=0, atol=2e-13)


@pytest.mark.parametrize(("measure", "real"), [("legs", -0.5), ("legt", 0), ("lagt", -0.5), ("fourier", 0)])
def test_couples_have_one_sign_and_rise(measure, real):
    Lambda, _, B, _ = nplr(measure, 64)
    assert (Lambda[:, 0] == real).all()
    assert (Lambda[:, 1] >= 0).all()
    assert (Lambda[:, 1].diff() > 0).all()
    assert (B[:, 0] > 0).all()
    assert not B[:, 1].any()
    assert torch.equal(diagonal(measure, 64), Lambda)


@pytest.mark.parametrize("measure", ["legs", "lagt", "fourier"])
def test_rank_one_is_half_of_the_input(measure):
    Lambda, P, B = dplr(measure, 16)
    torch.testing.assert_close((Lambda, P[None], B), nplr(measure, 16)[:3], rtol=0, atol=0)
    torch.testing.assert_close(P, B / 2**0.5, rtol=0, atol=0)


def test_legs_at_64():
    A, B = transition("legs", 64)
    skew = A + torch.outer(B, B) / 2 + torch.eye(64) / 2
    assert (skew + skew.T).abs().max() <= 1e-14 * A.abs().max()
    assert torch.equal(A.diag(), -torch.arange(1.0, 65).double())  # triangular: its eigenvalues
    assert not A.triu(diagonal=1).any()
    Lambda, _, _ = dplr("legs", 64)
    assert Lambda[-1, 1].item() == pytest.approx(1303.27, abs=0.005)


@pytest.mark.parametrize(("n", "condition"), [(8, 8e4), (16, 8e10)])
def test_legs_is_not_to_be_diagonalised(n, condition):
    values, vectors = np.linalg.eig(transition("legs", n)[0].numpy())
    assert np.linalg.cond(vectors) == pytest.approx(condition, rel=0.1)
    assert np.sort(values.real) == pytest.approx(-np.arange(float(n), 0, -1), rel=1e-3)


@pytest.mark.parametrize("measure", ["legs", "lagt", "legt"])
def test_rank_is_not_lower_than_it_says(measure):
    """A + A^T of -c I + S - P^T P has the rank of P beside -2c I: none of the columns of P is spare."""
    A, _ = transition(measure, 12)
    rate = 0 if measure == "legt" else 1
    values = torch.linalg.eigvalsh(A + A.T + rate * torch.eye(12))
    assert (values < -1e-9).sum() == (2 if measure == "legt" else 1)


def test_diagonal_kinds():
    """S4D (2022), section 4.3: Lin, Inv, Real, for n = 8."""
    k = np.arange(4)
    np.testing.assert_allclose(full(diagonal("lin", 8)), -0.5 + 1j * np.pi * k, rtol=1e-15)
    np.testing.assert_allclose(full(diagonal("inv", 8)), -0.5 + 8j / np.pi * (8 / (2 * k + 1) - 1), rtol=1e-15)
    np.testing.assert_allclose(full(diagonal("real", 8)), -(k + 1.0), rtol=0)
    np.testing.assert_allclose(full(diagonal("fourier", 8)), 2j * np.pi * k, rtol=1e-15)
    legs = full(diagonal("legs", 512)).imag[::-1]
    np.testing.assert_allclose(full(diagonal("inv", 512)).imag[:3], legs[:3], rtol=0.05)  # S4D, conjecture 5


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transition("leg", 4), "measure: 'leg'; .*Did you mean 'leg"),
        (lambda: transition("LegS", 4), "Did you mean 'legs'"),
        (lambda: nplr("lagg", 4), "Did you mean 'lagt'"),
        (lambda: diagonal("linear", 4), "Did you mean 'lin'"),
        (lambda: dplr("legt", 4), "measure: 'legt' is normal plus rank 2; use nplr"),
        (lambda: dplr("lags", 4), "measure: 'lags'; .*Did you mean 'legs'"),
        (lambda: transition("legs", 0), "n: 0 is out of range"),
        (lambda: transition("legs", -3), "n: -3"),
        (lambda: transition("legs", True), "n: True is not an integer"),
        (lambda: transition("legs", 4.0), "n: 4.0 is not an integer"),
        (lambda: transition("legs", 10**9), "n: 1000000000 is out of range"),
        (lambda: transition("fourier", 5), "n: 5 is odd; .*use 4 or 6"),
        (lambda: nplr("legs", 1), "n: 1 is out of range"),
        (lambda: diagonal("lin", 7), "n: 7 is odd; .*use 6 or 8"),
        (lambda: diagonal("real", 0), "n: 0 is out of range"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(SpecError, match=message):
        call()


def test_every_kind_has_its_shape():
    for kind in KINDS:
        Lambda = diagonal(kind, 6)
        assert (Lambda.shape, Lambda.dtype) == ((3, 2), F64)
