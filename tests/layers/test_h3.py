"""The H3 layer: its gates and heads, first values, what it refuses, what it costs."""

import math

import pytest
import torch
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.h3 import H3, H3Config
from hybridlm.ops.diagonal_ssm import diagonal_kernel
from hybridlm.registry import mixers


def layer(d=12, dtype=torch.float64, **config):
    """A layer with every parameter away from its first value."""
    mixer = H3(H3Config(**({"d_state": 6} | config)), d).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def toeplitz(kernel, t):
    """Kernel (d, t) -> the causal matrices (d, t, t) that convolve with it."""
    lag = torch.arange(t)[:, None] - torch.arange(t)
    return torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0)


# -------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("head_dim", [1, 2, 3, 12])
@torch.no_grad()
def test_is_attention_by_matrices(head_dim):
    """Section 3.1: per head, y = sum over s of M[t, s] (q_t . K_s) v_s, with M the matrix of the diagonal system."""
    mixer, t = layer(head_dim=head_dim), 20
    x = torch.randn(2, t, 12).double()
    q, k, v = (f(x) for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    taps = torch.zeros(12, t).double()
    taps[:, :6] = mixer.shift.C
    K = torch.einsum("dts,bsd->btd", toeplitz(taps, t), k) + mixer.shift.D * k
    q, K, v = (rearrange(z, "b t (h p) -> b h t p", p=head_dim) for z in (q, K, v))
    s = mixer.ssm
    Lambda = torch.stack([-s.log_A_real.exp(), s.A_imag], dim=-1)
    M = toeplitz(diagonal_kernel(Lambda, s.B, s.C, s.log_dt.exp(), t), t) + s.D[:, None, None] * torch.eye(t)
    y = (M * (q @ K.mT)) @ v
    expected = mixer.out_proj(rearrange(y, "b h t p -> b t (h p)"))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head_dim", [1, 4])
@pytest.mark.parametrize("t", [1, 7, 300])
@torch.no_grad()
def test_convolution_equals_recurrence(t, head_dim):
    mixer = layer(head_dim=head_dim, d_state=16)
    x = torch.randn(2, t, 12).double()
    whole, state = mixer(x, mixer.init_state(2, t, dtype=torch.float64))
    steps, ys = mixer.init_state(2, t, dtype=torch.float64), []
    for token in x.split(1, dim=1):
        y, steps = mixer(token, steps)
        ys.append(y)
    scale = whole.square().mean().sqrt()
    for got, wanted in ((torch.cat(ys, 1), whole), (mixer(x)[0], whole), (steps.ssm, state.ssm)):
        assert (got - wanted).square().mean().sqrt() <= 1e-12 * max(scale, wanted.square().mean().sqrt())
    assert (steps.conv - state.conv).abs().max() <= 1e-14


@torch.no_grad()
def test_one_loud_token_does_not_blur_the_quiet_ones_before_it():
    """Keys times values of 1e3 are 1e6, whose rounding in a float32 FFT would reach back to the first token."""
    mixer = layer(dtype=torch.float32, head_dim=4)
    x = torch.randn(1, 60, 12)
    loud = x.clone()
    loud[:, 50:] *= 1e3
    change = (mixer(loud)[0] - mixer(x)[0])[:, :50].abs().max()
    assert change <= 1e-4 * mixer(x)[0][:, :50].abs().max()


@pytest.mark.parametrize("head_dim", [1, 3])
@pytest.mark.parametrize("name", [name for name, _ in H3(H3Config(), 2).named_parameters()])
@torch.no_grad()
def test_every_number_of_every_parameter_counts(name, head_dim):
    mixer = layer(head_dim=head_dim)
    x = torch.randn(1, 30, 12, dtype=torch.float64)
    before, _ = mixer(x)
    parameter = mixer.get_parameter(name)
    parameter.copy_(parameter.flatten().roll(1).reshape(parameter.shape))
    assert (mixer(x)[0] - before).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------------- initial values
def test_first_values():
    mixer = H3(H3Config(dt_min=1e-2, dt_max=1.0), 512)
    assert (mixer.ssm.log_A_real == math.log(0.5)).all()
    torch.testing.assert_close(mixer.ssm.A_imag[7], math.pi * torch.arange(32.0))
    assert mixer.shift.C.abs().max().item() == pytest.approx(64**-0.5, rel=1e-3)
    assert mixer.shift.C.var().item() == pytest.approx(1 / 64 / 3, rel=0.05)
    assert mixer.shift.D.std().item() == pytest.approx(1, rel=0.1)
    log10_dt = mixer.ssm.log_dt / math.log(10)
    assert -2 <= log10_dt.min().item() < -1.95
    assert -0.05 < log10_dt.max().item() <= 0
    for head_dim in (1, 8):
        y, _ = H3(H3Config(head_dim=head_dim), 64)(torch.randn(4, 256, 64))
        assert 0.02 < y.square().mean().sqrt() < 2


# ------------------------------------------------------------------------------------------------------------- contract
def test_shapes_of_the_state():
    state = H3(H3Config(d_state=10, head_dim=4), 12).init_state(2, 99, dtype=torch.bfloat16)
    assert (state.conv.shape, state.conv.dtype) == ((2, 12, 9), torch.bfloat16)
    assert (state.ssm.shape, state.ssm.dtype) == ((2, 3, 4, 4, 5, 2), torch.float32)


def test_declarations_name_what_exists():
    mixer = H3(H3Config(), 4)
    names = {name for name, _ in mixer.named_parameters()}
    assert set(H3.param_groups) <= names
    for name in ("log_A_real", "A_imag", "B", "log_dt"):
        assert H3.param_groups[f"ssm.{name}"] == {"weight_decay": 0.0, "lr_max": 1e-3}
    assert mixers.get("h3") is H3
    assert (H3.letter, H3.recurrent, H3.rolls_back) == ("H", True, False)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"d_state": 7}, "d_state: 7 is odd.*6 or 8"),
        ({"d_state": 0}, "d_state: 0"),
        ({"head_dim": 5}, "head_dim: 5 does not divide d_model = 12; use 4 or 6"),
        ({"head_dim": 24}, "head_dim: 24 does not divide d_model = 12; use 12"),
        ({"head_dim": 0}, "head_dim: 0"),
        ({"head_dim": True}, "head_dim"),
        ({"init": "linear"}, "init: 'linear'.*lin"),
        ({"discretization": "euler"}, "discretization: 'euler'"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": math.nan}, "dt_max"),
        ({"dt_min": 0.2}, "dt_min: 0.2"),
    ],
)
def test_bad_configs_are_refused(config, named):
    with pytest.raises(SpecError, match=named):
        H3(H3Config(**config), 12)


@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("head_dim", [1, 4])
@torch.no_grad()
def test_cost(tokens, past, head_dim):
    """To the last FLOP, and to the last byte."""
    mixer = H3(H3Config(d_state=16, head_dim=head_dim), 32)
    cost = H3.cost(mixer.config, 32)
    assert cost.parameters == sum(parameter.numel() for parameter in mixer.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == mixer.init_state(1, 99, dtype=dtype).nbytes
    x, state = torch.randn(1, tokens, 32), mixer.init_state(1, 99) if past else None
    with FlopCounterMode(display=False) as counter:
        mixer(x, state)
    assert cost.forward(tokens, past).matmul == counter.get_total_flops()


def test_recurrence_by_hand():
    """d = 4, p = 2, N = 6. A channel: 6 taps, D; an entry of K v^T: 3 couples of 16, D, and its gates."""
    flops = H3.cost(H3Config(d_state=6, head_dim=2).resolve(4), 4).forward(1, 9)
    assert flops.scan == 4 * (2 * 6 + 2) + 2 * 4 * (3 * 16 + 2) + 2 * 4 * 3
    assert flops.fft == 0
