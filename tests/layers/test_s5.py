"""The S5 layer: first values against the paper's formulas, the clip, what it refuses, what it costs."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.s5 import S5, S5Config
from hybridlm.ops.hippo import nplr, transition
from hybridlm.registry import mixers


# ------------------------------------------------------------------------------------------------------- initial values
@pytest.mark.parametrize(("d_state", "blocks"), [(16, 1), (16, 2), (48, 4)])
def test_eigenvalues_are_blocks_of_hippo_n(d_state, blocks):
    """Of A + P P^T with LegS's A and P = B / sqrt(2), by the eigenvalues of the dense matrix."""
    mixer = S5(S5Config(d_state=d_state, blocks=blocks), 4).double()
    A, B = transition("legs", d_state // blocks)
    expected = torch.linalg.eigvals(A + torch.outer(B, B) / 2)
    expected = expected[expected.imag > 0]
    expected = expected[expected.imag.argsort()].repeat(blocks)
    torch.testing.assert_close(torch.complex(mixer.A_real, mixer.A_imag), expected, rtol=1e-6, atol=1e-6)


def test_a_unitary_change_of_basis_leaves_gaussians():
    """sqrt(2) [Re V, Im V] is orthogonal: V^-1 B and C V of the paper are independent Gaussians, as they are drawn."""
    V = nplr("legs", 16)[3]
    turn = 2**0.5 * V.permute(0, 2, 1).reshape(16, 16)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16).double(), rtol=0, atol=1e-12)


def test_drawn_values():
    mixer = S5(S5Config(d_state=256, dt_min=1e-2, dt_max=1.0), 128)
    assert mixer.B.var().item() == pytest.approx(1 / 256, rel=0.05)
    assert mixer.C.var().item() == pytest.approx(1 / 256, rel=0.05)
    assert mixer.D.std().item() == pytest.approx(1, rel=0.2)
    log10_dt = mixer.log_dt / math.log(10)
    assert -2 <= log10_dt.min().item() < -1.9
    assert -0.1 < log10_dt.max().item() <= 0
    y, _ = S5(S5Config(), 64)(torch.randn(4, 512, 64))
    assert 0.05 < y.square().mean().sqrt() < 1


# ------------------------------------------------------------------------------------------------------------- contract
@torch.no_grad()
def test_whatever_is_learned_the_system_forgets():
    """Re(Lambda) is at most -1e-4: a positive one acts as that, and its gradient is zero."""
    mixer, x = S5(S5Config(d_state=8), 6).double(), torch.randn(1, 40, 6).double()
    mixer.A_real.fill_(-1e-4)
    expected, _ = mixer(x)
    mixer.A_real.fill_(3.0)
    assert torch.equal(mixer(x)[0], expected)
    with torch.enable_grad():
        mixer(x)[0].square().sum().backward()
    assert not mixer.A_real.grad.any()
    mixer.A_real.fill_(-1e-2)
    assert not torch.equal(mixer(x)[0], expected)


@pytest.mark.parametrize("name", [name for name, _ in S5(S5Config(), 2).named_parameters()])
@torch.no_grad()
def test_every_number_of_every_parameter_counts(name):
    mixer = S5(S5Config(d_state=8), 6).double()
    for parameter in mixer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    before, _ = mixer(x)
    parameter = mixer.get_parameter(name)
    parameter.copy_(parameter.flatten().roll(1).reshape(parameter.shape))
    assert (mixer(x)[0] - before).abs().max() > 1e-4


@torch.no_grad()
def test_channels_share_the_states():
    """What one channel hears, all others may say: S4 and S4D mix channels behind the system only."""
    mixer = S5(S5Config(), 6).double()
    mixer.gate_proj.weight.zero_()
    mixer.out_proj.weight.copy_(torch.eye(6))
    x = torch.zeros(1, 10, 6).double()
    x[0, 0, 2] = 1
    assert (mixer(x)[0][0, 5].abs() > 1e-6).all()


def test_declarations_name_what_exists():
    mixer = S5(S5Config(), 4)
    names = {name for name, _ in mixer.named_parameters()}
    assert set(S5.param_groups) <= names
    for name in ("A_real", "A_imag", "B", "log_dt"):
        assert S5.param_groups[name] == {"weight_decay": 0.0, "lr_max": 1e-3}
    assert mixers.get("s5") is S5
    assert (S5.letter, S5.recurrent, S5.rolls_back) == ("V", True, False)


@pytest.mark.parametrize(
    ("d_model", "d_state", "blocks"),
    [(1, 2, 1), (7, 6, 3), (32, 32, 4), (127, 112, 4), (512, 512, 8), (1009, 1008, 14), (9999, 4096, 64)],
)
def test_states_grow_with_the_width(d_model, d_state, blocks):
    """One state a channel or nearly, in blocks of about 64 at most: 64 for a layer of any width would be too few."""
    config = S5Config().resolve(d_model)
    assert (config.d_state, config.blocks) == (d_state, blocks)
    assert config.resolve(d_model) == config


@pytest.mark.parametrize("d_state", [2, 6, 10, 64, 100])
def test_blocks_divide_by_default(d_state):
    config = S5Config(d_state=d_state).resolve(32)
    assert d_state // 2 % config.blocks == 0
    assert 1 <= config.blocks <= 4


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"d_state": 7}, "d_state: 7 is odd.*6 or 8"),
        ({"d_state": 0}, "d_state: 0"),
        ({"d_state": True}, "d_state"),
        ({"d_state": 10**9}, "d_state"),
        ({"d_state": 24, "blocks": 5}, "blocks: 5 does not divide d_state / 2 = 12; use 4 or 6"),
        ({"d_state": 8, "blocks": 8}, "blocks: 8 does not divide d_state / 2 = 4; use 4"),
        ({"blocks": 0}, "blocks: 0"),
        ({"blocks": 1.0}, "blocks"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": math.nan}, "dt_max"),
        ({"dt_min": 0.2}, "dt_min: 0.2"),
        ({"time_scale": 0.0}, "time_scale: 0.0"),
        ({"time_scale": math.nan}, "time_scale"),
    ],
)
def test_bad_configs_are_refused(config, named):
    with pytest.raises(SpecError, match=named):
        S5(S5Config(**config), 4)


@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize("past", [0, 5])
@torch.no_grad()
def test_cost(tokens, past):
    """To the last FLOP."""
    mixer = S5(S5Config(d_state=16), 32)
    cost = S5.cost(mixer.config, 32)
    assert cost.parameters == sum(parameter.numel() for parameter in mixer.parameters())
    x, state = torch.randn(1, tokens, 32), mixer.init_state(1, 99) if past else None
    with FlopCounterMode(display=False) as counter:
        mixer(x, state)
    assert cost.forward(tokens, past).matmul == counter.get_total_flops()
