"""mamba3: its config, initial values, cost, and what the laws of the kit do not say."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.mamba3 import Mamba3, Mamba3Config


def test_defaults_are_legal_at_every_width():
    for d_model in range(32, 400):
        config = Mamba3Config().resolve(d_model)
        assert config.resolve(d_model) == config
        assert config.angles == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_state": 3}, "d_state: 3 is out of range; it must be an integer from 4"),
        ({"d_state": 1, "rope_fraction": 1}, "d_state: 1 is out of range; it must be an integer from 2"),
        ({"d_state": 0, "rope_fraction": 0}, "d_state: 0 is out of range; it must be an integer from 1"),
        ({"rope_fraction": 0.25}, "rope_fraction: 0.25 is none of 0, 0.5 and 1"),
        ({"rope_fraction": True}, "rope_fraction: True is not a finite number"),
        ({"expand": 1.51}, "expand: 1.51 times d_model = 64 is no whole number from 1 up; use 1.5 or 1.515625"),
        ({"head_dim": 48}, "head_dim: 48 does not divide expand * d_model = 128; use 32 or 64"),
        ({"n_groups": 3}, "n_groups: 3 does not divide heads = expand * d_model / head_dim = 2; use 2"),
        ({"chunk": 1}, "chunk: 1 is out of range; it must be an integer from 2"),
        ({"dt_min": 0.2}, "dt_min: 0.2 is greater than dt_max = 0.1"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        Mamba3Config(**fields).resolve(64)


def test_initial_values():
    made = Mamba3(Mamba3Config(head_dim=2), 512)
    made.reset_parameters(Streams(0))
    dt = F.softplus(made.dt_bias)
    assert 1e-3 * 0.999 < dt.min() < 1.1e-3
    assert 0.09 < dt.max() < 0.1 * 1.001
    assert abs(dt.log10().mean() + 2) < 0.1  # log-uniform
    for parameter in (made.B_bias, made.C_bias, made.D, made.B_norm.weight, made.C_norm.weight):
        assert torch.equal(parameter, torch.ones_like(parameter))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head_dim": 1, "n_groups": 2, "d_state": 9, "chunk": 16, "rope_fraction": 1},
        {"expand": 3, "rope_fraction": 0, "d_state": 5},
    ],
)
@pytest.mark.parametrize("d_model", [32, 37])
def test_cost_is_exact(d_model, fields):
    config = Mamba3Config(**fields).resolve(d_model)
    made, cost = Mamba3(config, d_model), Mamba3.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 16, 17, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


def test_scan_flops_by_hand():
    """d_model 2, two heads of P = 2, N = 4, one angle. A token: 13 + 8 + 6 + 7; at the end 16 + 2 + 12; D x: 4."""
    cost = Mamba3.cost(Mamba3Config(d_state=4, head_dim=2).resolve(2), 2)
    attention = 3 * 2 * 4  # fade, write, add
    assert cost.forward(1, 9).scan == 2 * (attention + (13 + 8 + 6 + 7) + (16 + 2 + 12) + 4)


def test_what_turns_is_half_of_the_state():
    """theta = 0 everywhere is what rope_fraction: 0 computes; with theta, only the pairs that turn differ."""
    made = Mamba3(Mamba3Config(d_state=8, head_dim=4), 12).double()
    still = Mamba3(Mamba3Config(d_state=8, head_dim=4, rope_fraction=0), 12).double()
    rows = made.in_proj.weight.shape[0] - 2
    still.load_state_dict(made.state_dict() | {"in_proj.weight": made.in_proj.weight[:rows]})
    x = torch.randn(2, 20, 12).double()
    turned, fixed = (layer(x, layer.init_state(2, 20, dtype=x.dtype))[1].ssm for layer in (made, still))
    assert torch.equal(turned[..., 4:], fixed[..., 4:])
    assert (turned[..., :4] - fixed[..., :4]).abs().max() > 1e-4
    torch.nn.init.zeros_(made.in_proj.weight[rows:].detach())
    torch.testing.assert_close(made(x)[0], still(x)[0], rtol=1e-12, atol=1e-14)


def test_a_rate_has_a_floor():
    """A far below 0 before softplus is 1e-4, not 0: a state that decays by e^{-dt / 10,000} a step."""
    made = Mamba3(Mamba3Config(d_state=4, head_dim=4), 12)
    _, A, trap = made.step(*(torch.full((1, 3, 6), value) for value in (0.0, -100.0, 0.0)))
    assert torch.equal(A, torch.full_like(A, -1e-4))
    assert torch.equal(trap, torch.full_like(trap, 0.5))


def test_steps_and_state_stay_wide():
    """Under bf16 weights and under autocast: a float32 state, and dt, A and the biases of B and C in float32."""
    config = Mamba3Config(d_state=4, head_dim=4)
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        made = Mamba3(config, 12).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = made(torch.randn(2, 20, 12, dtype=dtype), made.init_state(2, 20, dtype=dtype))
        assert (y.dtype, state.value.dtype) == (torch.bfloat16, dtype)
        assert (state.ssm.dtype, state.key.dtype) == (torch.float32, torch.float32)
