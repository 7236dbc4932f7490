"""A signal run through a system, online: the state after every sample. No loop over time.

h_k = A_k h_{k-1} + u_k is solved by halves: two steps at once are one step of the same kind, with A_k A_{k-1} and
A_k u_{k-1} + u_k. That gives every second state from half as many steps, and the others follow from their neighbours.

Source: HiPPO (2020), algorithm 1 and section 2.4; Blelloch, Prefix Sums and Their Applications (1990), for the scan.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.ops.hippo.discrete import discretize, discretize_scaled
from hybridlm.ops.hippo.measures import LARGEST, transition

BLOCK = 2**22  # numbers in the matrices that are held at once, 32 MB


def project(
    measure: str, f: Float[Tensor, "b t"], n: int, dt: float, method: str = "bilinear"
) -> Float[Tensor, "b t {n}"]:
    """The states after every sample: f (b, t) -> (b, t, n) float64. dt: a sample's length on the measure's time scale.

    State k, from 0, stands for time (k + 1) dt; sample k is the signal during the step that ends there, so a smooth
    signal is best sampled in the middle of its steps. Before the first sample there was silence. method: `discretize`.
    """
    Abar, Bbar = discretize(*transition(measure, n), dt, method)
    u = Bbar[:, None] * f.double().T[:, None]
    return _scan(Abar[None], u).permute(2, 0, 1)


def project_scaled(f: Float[Tensor, "b t"], n: int, method: str = "bilinear") -> Float[Tensor, "b t {n}"]:
    """The same by LegS's own update: state k (b, t, n) is the whole past [0, k + 1] in Legendre polynomials, float64.

    HiPPO, theorem 2: d/dt x = (A x + B f) / t. Read it with `reconstruct("legs", state, ages)`, where the past at time
    u of t has age log(t / u). method: `discretize_scaled`; zoh is exact for samples that are held.
    Each step has a matrix of its own: n^3 operations a step, and blocks of steps, so that memory does not grow with t.
    """
    b, t = f.shape
    n = whole("n", n, high=LARGEST)
    states, h = [], torch.zeros(1, n, b, dtype=torch.float64)
    for k in torch.arange(1, t + 1).split(max(1, BLOCK // n**2)):
        Abar, Bbar = discretize_scaled(n, k, method)
        u = Bbar[..., None] * f.double().T[k - 1, None]
        states.append(_scan(Abar, torch.cat([u[:1] + Abar[:1] @ h, u[1:]])))
        h = states[-1][-1:]
    return torch.cat(states).permute(2, 0, 1)


def _scan(A: Tensor, u: Tensor) -> Tensor:
    """h_k = A_k h_{k-1} + u_k from h = 0: A (t, n, n), or (1, n, n) for all steps, u (t, n, b) -> h (t, n, b)."""
    t = len(u)
    if t <= 1:
        return u
    first, second = A[: t - 1 : 2], A[1::2] if len(A) > 1 else A
    pairs = second @ u[: t - 1 : 2] + u[1::2]
    after = _scan(second @ first, pairs)  # h_1, h_3, ...
    before = torch.cat([torch.zeros_like(u[:1]), after])[: t - t // 2]
    h = torch.empty_like(u)
    h[1::2], h[::2] = after, A[::2] @ before + u[::2]
    return h
