"""State space duality on the library's own layers: four forms of Mamba-2, and theorem 1 of the Mamba paper.

Every form is computed here from what enters the layer's heart, head by head, and then taken through the rest of the
layer. docs/duality.md tells the same for one head; its code is run, and what it prints is compared.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hybridlm.context import Context
from hybridlm.layers.init import Streams
from hybridlm.layers.mamba import Mamba
from hybridlm.layers.mamba2 import Mamba2
from hybridlm.ops.selective_scan import selective_scan
from hybridlm.ops.ssd import ssd

PAGE = Path(__file__).resolve().parents[1] / "docs/duality.md"
N, T = 5, 41


# ------------------------------------------------------------------------------------------------------------ the page
def test_the_page_computes_what_it_shows():
    """Its blocks of Python run in order; what one prints is the text below it."""
    names, text, printed = {}, PAGE.read_text(encoding="utf-8"), 0
    for block in re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block[1], str(PAGE), "exec"), names)
        if out.getvalue():
            shown = [line.rstrip() for line in out.getvalue().splitlines()]
            assert block[2].splitlines() == shown
            printed += 1
    assert printed == 5


# --------------------------------------------------------------------------------------------------- (a), (b), (c), (d)
@pytest.fixture(params=[1, 2, 4], ids="groups-{}".format)
def layer(request):
    """A layer with every parameter random, its input, and what enters its heart, B and C a head: (h, T, ...)."""
    made = Mamba2(Mamba2.Config(d_state=N, head_dim=6, n_groups=request.param, chunk=8, dt_min=0.01), 12).double()
    made.reset_parameters(Streams(3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    u = torch.randn(1, T, 12, dtype=torch.float64)
    z, xBC, dt = made.in_proj(u).split(made.widths, dim=-1)
    x, B, C = made.split(made.conv1d(xBC, None, Context.of(u))[0])
    dt = F.softplus(dt + made.dt_bias)
    B, C = (v.repeat_interleave(4 // request.param, dim=2) for v in (B, C))
    x, B, C, dt = (v[0].transpose(0, 1).detach() for v in (x, B, C, dt))
    return SimpleNamespace(layer=made, u=u, z=z, x=x, B=B, C=C, dt=dt, decay=dt * -made.A_log.exp()[:, None].detach())


def recurrence(s):
    """Eq. 2, one token at a time: H (P, N) a head."""
    H, ys = torch.zeros(4, 6, N, dtype=torch.float64), []
    for t in range(T):
        write = s.dt[:, t, None, None] * s.x[:, t, :, None] * s.B[:, t, None, :]
        H = s.decay[:, t, None, None].exp() * H + write
        ys.append((H * s.C[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1)


def semiseparable(s):
    """M of eq. 3, (h, T, T), entry by entry: C_i . (a_i ... a_{j+1}) B_j dt_j."""
    M = torch.zeros(4, T, T, dtype=torch.float64)
    for h in range(4):
        for i in range(T):
            for j in range(i + 1):
                M[h, i, j] = s.C[h, i] @ s.B[h, j] * s.decay[h, j + 1 : i + 1].exp().prod() * s.dt[h, j]
    return M


def mask(s):
    """L of section 5.2, (h, T, T): each row decays the one above."""
    rows = [torch.zeros(4, T, dtype=torch.float64)]
    for i in range(T):
        row = rows[-1] * s.decay[:, i, None].exp()
        rows.append(row.index_fill(1, torch.tensor([i]), 1.0))
    return torch.stack(rows[1:], dim=1)


def attention(s):
    """Queries C, keys B, values dt x, and decays for a mask."""
    return (mask(s) * (s.C @ s.B.mT)) @ (s.dt[..., None] * s.x)


def chunked(s):
    """The library's own."""
    x, B, C, dt = (v.transpose(0, 1)[None] for v in (s.x, s.B, s.C, s.dt))
    return ssd(x, dt, -s.layer.A_log.exp(), B, C, None, chunk=8)[0][0].transpose(0, 1).detach()


def finished(s, y):
    """What the layer does with y (h, T, P)."""
    y = (y + s.layer.D[:, None, None] * s.x).transpose(0, 1).reshape(1, T, -1)
    return s.layer.out_proj(s.layer.norm(y, s.z, s.layer.config.n_groups))


def error(ours, true):
    return ((ours - true).norm() / true.norm()).item()


FORMS = {
    "recurrence": recurrence,
    "matrix": lambda s: semiseparable(s) @ s.x,
    "attention": attention,
    "blocks": chunked,
}


@pytest.mark.parametrize("form", FORMS)
def test_four_forms_are_one(layer, form):
    """In float64, to 1e-12: of the heart against the recurrence, and of the whole layer against its own forward."""
    y = FORMS[form](layer)
    assert error(y, recurrence(layer)) < 1e-12
    assert error(finished(layer, y), layer.layer(layer.u)[0]) < 1e-12


def test_the_matrix_is_mask_times_scores(layer):
    scores = (layer.C @ layer.B.mT) * layer.dt[:, None, :]
    torch.testing.assert_close(semiseparable(layer), mask(layer) * scores, rtol=1e-12, atol=1e-15)


# --------------------------------------------------------------------------------------------------------------- ranks
def ranks(M):
    """Ranks of the largest blocks on or below the diagonal that hold rows from `cut` on: with it, and without."""
    with_diagonal = [torch.linalg.matrix_rank(M[cut:, : cut + 1], rtol=1e-11).item() for cut in range(T)]
    below = [torch.linalg.matrix_rank(M[cut:, :cut], rtol=1e-11).item() for cut in range(1, T)]
    return with_diagonal, below


def test_blocks_below_the_diagonal_have_rank_n(layer):
    """Definition 3.1. Wherever the block is large enough the rank is N, neither more nor less."""
    for M in semiseparable(layer):
        with_diagonal, below = ranks(M)
        assert with_diagonal == [min(N, cut + 1, T - cut) for cut in range(T)]
        assert below == [min(N, cut, T - cut) for cut in range(1, T)]


def test_blocks_of_the_mask_have_rank_one(layer):
    for L in mask(layer):
        with_diagonal, below = ranks(L)
        assert set(with_diagonal) == set(below) == {1}


def test_softmax_attention_has_no_such_bound(layer):
    """The same queries and keys, another mask: the rank is that of the block."""
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    for scores in layer.C @ layer.B.mT:
        _, below = ranks(scores.masked_fill(~causal, -torch.inf).softmax(-1))
        assert max(below[N : T - N]) > N


# ----------------------------------------------------------------------------------------------------------- theorem 1
def gated_mixer(rule, shift):
    """Theorem 1's case of the library's mamba, with nothing around its SSM: N = 1, A = -1, B = 1, dt selected.

    The projections are the identity, the convolution has one tap, and D = 0, so that h itself comes out, and Linear(x)
    is what W_dt W_x makes of x = silu(u). shift: its bias, which sets the size of the steps.
    """
    config = Mamba.Config(d_state=1, d_conv=2, expand=1, select=("dt",), gate=False, discretization=rule)
    mixer = Mamba(config, 6).double()
    mixer.reset_parameters(Streams(4))
    with torch.no_grad():
        for layer in (mixer.in_proj, mixer.out_proj):
            layer.weight.copy_(torch.eye(6))
        for parameter in (mixer.conv1d.weight, mixer.conv1d.bias, mixer.A_log, mixer.D):
            parameter.zero_()
        mixer.conv1d.weight[..., -1] = 1
        mixer.C.fill_(1)
        mixer.dt_proj.bias.fill_(shift)
    assert torch.equal(mixer.B, torch.ones(1, dtype=torch.float64))
    return mixer


def gated_rnn(mixer, u):
    """Eq. 5: g = sigmoid(Linear(x)), h <- (1 - g) h + g x."""
    x, hs = F.silu(u), [torch.zeros_like(u[:, 0])]
    g = torch.sigmoid(x @ mixer.x_proj.weight.T @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    for t in range(u.shape[1]):
        hs.append((1 - g[:, t]) * hs[-1] + g[:, t] * x[:, t])
    return torch.stack(hs[1:], dim=1), g


@pytest.mark.parametrize("shift", [2.0, 0.0, -2.0, -5.0, -12.0])
def test_theorem_1_holds_under_zero_order_hold(shift):
    """To 1e-15, with the mixer's chunked scan and one token at a time alike; worst error seen: 5e-16."""
    mixer, u = gated_mixer("zoh", shift), torch.randn(3, T, 6, dtype=torch.float64)
    true, _ = gated_rnn(mixer, u)
    assert error(mixer(u)[0], true) < 1e-15
    state, ys = mixer.init_state(3, T, dtype=u.dtype), []
    for token in u.split(1, dim=1):
        y, state = mixer(token, state)
        ys.append(y)
    assert error(torch.cat(ys, 1), true) < 1e-15
    assert error(state.ssm[..., 0], true[:, -1]) < 1e-15


def test_theorem_1_fails_under_eulers_rule():
    """By 20 to 90% at steps of about 0.7; what is missing is dt - g, the weight that Euler's rule adds to the input."""
    mixer, u = gated_mixer("euler", 0.0), torch.randn(3, T, 6, dtype=torch.float64)
    true, g = gated_rnn(mixer, u)
    assert 0.2 < error(mixer(u)[0], true) < 0.9
    dt = -torch.log1p(-g)  # softplus of what g is the sigmoid of
    h, _ = selective_scan(F.silu(u) * g / dt, dt, *constants(), None)
    assert error(h, true) < 1e-14  # scaled by g / dt, the input is theorem 1's


def constants():
    """A = -1, B = C = 1."""
    one = torch.ones(3, T, 1, dtype=torch.float64)
    return -torch.ones(6, 1, dtype=torch.float64), one, one


def test_the_failure_is_of_second_order():
    """One step from h = 0: what Euler's rule gets wrong is dt^2 / 2, up to a third of dt of that."""
    u = torch.randn(3, 1, 6, dtype=torch.float64)
    for shift in (-2.0, -4.0, -8.0):
        mixer = gated_mixer("euler", shift)
        true, g = gated_rnn(mixer, u)
        dt = -torch.log1p(-g)
        wrong = (mixer(u)[0] - true) / F.silu(u)
        torch.testing.assert_close(wrong / dt**2, torch.full_like(dt, 0.5), rtol=0, atol=dt.max().item() / 6 + 1e-7)


def test_over_a_fixed_time_it_is_of_first_order():
    """Twice the steps, each half as long and a quarter as wrong: half of the error is left."""
    left = []
    for steps in (64, 128, 256):
        dt = torch.full((1, steps, 1), 2 / steps, dtype=torch.float64)
        one = torch.ones_like(dt)
        h, _ = selective_scan(one, dt, -one[0, :1], one, one, None)
        left.append(h[0, -1, 0].item() - (1 - math.exp(-2)))
    assert [before / after for before, after in pairwise(left)] == pytest.approx([2, 2], rel=0.02)
