"""The S4D layer: first values against the paper's formulas, theorem 3, what it refuses, what it costs."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.s4d import S4D, S4DConfig
from hybridlm.ops.diagonal_ssm import diagonal_ssm
from hybridlm.ops.hippo import nplr, transition
from hybridlm.ops.ssm_kernel import s4_scan
from hybridlm.registry import mixers


# ------------------------------------------------------------------------------------------------------- initial values
def eigenvalues(**config):
    """Lambda of a fresh layer's first channel, complex (N/2)."""
    system = S4D(S4DConfig(**config), 3).double().ssm
    assert (system.log_A_real == system.log_A_real[0]).all()
    assert (system.A_imag == system.A_imag[0]).all()
    return torch.complex(-system.log_A_real[0].exp(), system.A_imag[0]).detach()


@pytest.mark.parametrize("n", [2, 8, 64])
@pytest.mark.parametrize(
    ("kind", "real", "imag"),
    [
        ("lin", lambda k, n: -0.5, lambda k, n: math.pi * k),
        ("inv", lambda k, n: -0.5, lambda k, n: n / math.pi * (n / (2 * k + 1) - 1)),
        ("real", lambda k, n: -(k + 1), lambda k, n: 0),
    ],
)
def test_eigenvalues_are_those_of_the_paper(kind, real, imag, n):
    expected = torch.tensor([complex(real(k, n), imag(k, n)) for k in range(n // 2)])
    torch.testing.assert_close(eigenvalues(init=kind, d_state=n), expected.to(torch.complex128), rtol=3e-7, atol=0)
    system = S4D(S4DConfig(init=kind, d_state=n), 3).ssm
    assert torch.equal(system.B, torch.tensor([1.0, 0.0]).expand_as(system.B))


def test_legs_is_the_normal_part_of_hippo():
    """A + P P^T of LegS is diagonalised: eigenvalues from the dense matrix; B is half of V^* B."""
    A, B = transition("legs", 16)
    expected = torch.linalg.eigvals(A + torch.outer(B, B) / 2)
    expected = expected[expected.imag > 0]
    torch.testing.assert_close(
        eigenvalues(init="legs", d_state=16), expected[expected.imag.argsort()], rtol=1e-6, atol=1e-6
    )
    system = S4D(S4DConfig(init="legs", d_state=16), 3).double().ssm
    assert (2 * (2 * system.B[0]).square().sum()).item() == pytest.approx(B.square().sum().item(), rel=1e-6)


@torch.no_grad()
def test_tends_to_s4_as_the_state_grows():
    """Theorem 3: with A's normal part alone and B / 2, LegS's outputs for smooth inputs are those of all of A and B."""
    t = torch.linspace(0, 3, 3000, dtype=torch.float64)
    smooth = sum((1 + f) ** -1 * torch.sin(2 * math.pi * f * t + f) for f in (0.2, 0.7, 1.5))
    x, dt = smooth[None, :, None].expand(1, -1, 3), torch.full((3,), 1e-3).double()
    errors = []
    for n in (8, 32, 128):
        Lambda, P, B, V = nplr("legs", n)
        system = S4D(S4DConfig(init="legs", d_state=n), 3).double().ssm
        C, D = V[:3], torch.zeros(3).double()  # outputs: the first three coefficients of LegS
        whole, _ = s4_scan(x, *(p.expand(3, -1, -1) for p in (Lambda, P[0], B)), C, D, dt)
        mine, _ = diagonal_ssm(x, Lambda.expand(3, -1, -1), system.B, C, D, dt, rule="bilinear")
        errors.append(((mine - whole).square().mean() / whole.square().mean()).sqrt().item())
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.06


def test_drawn_values():
    mixer = S4D(S4DConfig(dt_min=1e-2, dt_max=1.0), 512)
    assert mixer.ssm.C.var().item() == pytest.approx(0.5, rel=0.05)
    assert mixer.ssm.D.std().item() == pytest.approx(1, rel=0.1)
    log10_dt = mixer.ssm.log_dt / math.log(10)
    assert -2 <= log10_dt.min().item() < -1.95
    assert -0.05 < log10_dt.max().item() <= 0
    for kind in ("lin", "inv", "real", "legs"):
        y, _ = S4D(S4DConfig(init=kind), 64)(torch.randn(4, 512, 64))
        assert 0.05 < y.square().mean().sqrt() < 1


def test_first_values_do_not_depend_on_where_they_are_made():
    here = S4D(S4DConfig(init="legs"), 8)
    here.reset_parameters(Streams(3))
    with torch.device("meta"):
        away = S4D(S4DConfig(init="legs"), 8)
    away = away.to_empty(device="cpu")
    away.reset_parameters(Streams(3))
    for (name, a), (_, b) in zip(here.named_parameters(), away.named_parameters(), strict=True):
        assert torch.equal(a, b), name


# ------------------------------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("name", [name for name, _ in S4D(S4DConfig(), 2).named_parameters()])
@torch.no_grad()
def test_every_number_of_every_parameter_counts(name, rule):
    mixer = S4D(S4DConfig(d_state=8, discretization=rule), 6).double()
    for parameter in mixer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    before, _ = mixer(x)
    parameter = mixer.get_parameter(name)
    parameter.copy_(parameter.flatten().roll(1).reshape(parameter.shape))
    assert (mixer(x)[0] - before).abs().max() > 1e-4


def test_the_two_rules_differ():
    x = torch.randn(1, 20, 4)
    held, trapezoidal = (S4D(S4DConfig(discretization=rule), 4) for rule in ("zoh", "bilinear"))
    trapezoidal.load_state_dict(held.state_dict())
    assert (held(x)[0] - trapezoidal(x)[0]).abs().max() > 1e-4


def test_declarations_name_what_exists():
    mixer = S4D(S4DConfig(), 4)
    names = {name for name, _ in mixer.named_parameters()}
    assert set(S4D.param_groups) <= names
    for name in ("log_A_real", "A_imag", "B", "log_dt"):
        assert S4D.param_groups[f"ssm.{name}"] == {"weight_decay": 0.0, "lr_max": 1e-3}
    assert mixers.get("s4d") is S4D
    assert (S4D.letter, S4D.recurrent, S4D.rolls_back) == ("s", True, False)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"d_state": 7}, "d_state: 7 is odd.*6 or 8"),
        ({"d_state": 0}, "d_state: 0"),
        ({"d_state": True}, "d_state"),
        ({"d_state": 10**9}, "d_state"),
        ({"d_state": 64.0}, "d_state"),
        ({"init": "legz"}, "init: 'legz'.*legs"),
        ({"init": None}, "init: None"),
        ({"discretization": "euler"}, "discretization: 'euler'.*zoh, bilinear"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": math.nan}, "dt_max"),
        ({"dt_min": 0.2}, "dt_min: 0.2"),
        ({"time_scale": 0.0}, "time_scale: 0.0"),
        ({"time_scale": -1.0}, "time_scale: -1.0"),
        ({"time_scale": math.inf}, "time_scale"),
        ({"time_scale": "2"}, "time_scale"),
    ],
)
def test_bad_configs_are_refused(config, named):
    with pytest.raises(SpecError, match=named):
        S4D(S4DConfig(**config), 4)


@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize("past", [0, 5])
@torch.no_grad()
def test_cost(tokens, past):
    """To the last FLOP."""
    mixer = S4D(S4DConfig(d_state=16), 32)
    cost = S4D.cost(mixer.config, 32)
    assert cost.parameters == sum(parameter.numel() for parameter in mixer.parameters())
    x, state = torch.randn(1, tokens, 32), mixer.init_state(1, 99) if past else None
    with FlopCounterMode(display=False) as counter:
        mixer(x, state)
    assert cost.forward(tokens, past).matmul == counter.get_total_flops()
