"""The S4 layer against its three-line definition, and the contract it shares with every mixer."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.context import Context, Cursor
from hybridlm.errors import SpecError, StateError, UnsupportedError
from hybridlm.layers.init import Streams
from hybridlm.layers.s4 import S4, S4Config
from hybridlm.registry import mixers

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def layer(d=6, dtype=torch.float64, **config):
    """A layer with every parameter away from its first value."""
    mixer = S4(S4Config(**config), d).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def oracle(mixer, x):
    """Token by token with full complex matrices, in numpy; from the parameters' meaning to the output of the layer."""
    p = {name: value.detach().double().numpy() for name, value in mixer.named_parameters()}
    pair = {name: p[name][..., 0] + 1j * p[name][..., 1] for name in "PBC"}
    couples = {**pair, "Lambda": -np.exp(p["log_A_real"]) + 1j * p["A_imag"]}
    Lambda, P, B, C = (np.concatenate([couples[k], couples[k].conj()], 1) for k in ("Lambda", "P", "B", "C"))
    half, eye = np.exp(p["log_dt"])[:, None, None] / 2, np.eye(Lambda.shape[1])
    A = Lambda[:, :, None] * eye - P[:, :, None] * P[:, None].conj()
    h, ys = np.zeros((len(x), *Lambda.shape), complex), []
    for u in x.double().numpy().swapaxes(0, 1):
        right = np.einsum("dnm,bdm->bdn", eye + half * A, h) + 2 * half[..., 0] * B * u[..., None]
        h = np.linalg.solve((eye - half * A)[None], right[..., None])[..., 0]
        ys.append((C * h).sum(-1).real + p["D"] * u)
    y = torch.from_numpy(np.stack(ys, 1))
    y = (y * (1 + torch.erf(y / 2**0.5)) / 2).numpy()
    value, gate = torch.from_numpy(y @ p["output_linear.weight"].T + p["output_linear.bias"]).chunk(2, dim=-1)
    kept = h[..., : h.shape[-1] // 2]
    return value / (1 + torch.exp(-gate)), torch.from_numpy(np.stack([kept.real, kept.imag], -1))


def check(y, expected, limit):
    error, scale = (y.double() - expected).square(), expected.square().mean()
    assert error.mean().sqrt() <= limit * scale.sqrt()
    assert error.mean(dim=-1).max().sqrt() <= 10 * limit * scale.sqrt()


def run(mixer, x, pieces, state):
    """Outputs and last state when x is fed in pieces."""
    outputs = []
    for piece in x.split(pieces, dim=1):
        y, state = mixer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


# -------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("t", [1, 7, 300])
@torch.no_grad()
def test_equals_its_definition(t, dtype):
    mixer = layer(dtype=dtype)
    x = torch.randn(2, t, 6, dtype=dtype)
    expected, h = oracle(mixer, x)
    y, nothing = mixer(x)
    assert nothing is None
    assert y.dtype == dtype
    check(y, expected, LIMIT[dtype])
    for pieces in ([t], [1] * t, [t // 2, t - t // 2] if t > 1 else [1]):
        y, state = run(mixer, x, pieces, mixer.init_state(2, t, dtype=dtype))
        check(y, expected, LIMIT[dtype])
        assert (state.ssm.double() - h).square().mean().sqrt() <= LIMIT[dtype] * h.square().mean().sqrt()


@pytest.mark.parametrize("name", [name for name, _ in S4(S4Config(), 2).named_parameters()])
@torch.no_grad()
def test_every_number_of_every_parameter_counts(name):
    mixer = layer(d_state=8)
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    before, _ = mixer(x)
    parameter = mixer.get_parameter(name)
    parameter.copy_(parameter.flatten().roll(1).reshape(parameter.shape))
    assert (mixer(x)[0] - before).abs().max() > 1e-4


def test_gradients_reach_every_parameter_and_the_first_state():
    mixer = layer(d=2, d_state=4)
    x, h = torch.randn(2, 5, 2).double().requires_grad_(), torch.randn(2, 2, 2, 2).double().requires_grad_()
    names = [name for name, _ in mixer.named_parameters()]

    def call(x, h, *values):
        named = dict(zip(names, values, strict=True))
        y, state = torch.func.functional_call(mixer, named, (x, S4.State(h)))
        fresh, _ = torch.func.functional_call(mixer, named, (x,))
        return y.mT, state.ssm, fresh

    assert torch.autograd.gradcheck(call, (x, h, *mixer.parameters()), fast_mode=True)


@torch.no_grad()
def test_padding_and_packing():
    """Row 0: three tokens end the state's document, two make another. Row 1: nothing. Row 2: one document begins."""
    mixer = layer(d_state=8)
    x = torch.randn(3, 7, 6).double()
    valid = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [0] * 7, [1] * 7]).bool()
    segments = torch.tensor([[0, 0, 0, 0, 0, 5, 5], [3] * 7, [2] * 7])
    _, state = mixer(torch.randn(3, 4, 6).double(), mixer.init_state(3, 20, dtype=torch.float64))
    old, noisy = S4.State(state.ssm.clone()), x.clone()
    noisy[~valid] = torch.nan
    ctx = Cursor.zeros(3).open(noisy, valid, segments)
    y, state = mixer(ctx.align(noisy), state, ctx)
    y = ctx.restore(y)

    def alone(row, at, h):
        outputs, after = mixer(x[row : row + 1, at], S4.State(h))
        return outputs[0], after.ssm[0]

    zero = torch.zeros_like(old.ssm[:1])
    torch.testing.assert_close(y[0, 1:4], alone(0, [1, 2, 3], old.ssm[:1].clone())[0], rtol=0, atol=1e-12)
    for row, at in ((0, [5, 6]), (2, list(range(7)))):
        outputs, after = alone(row, at, zero.clone())
        torch.testing.assert_close(y[row, at], outputs, rtol=0, atol=1e-12)
        torch.testing.assert_close(state.ssm[row], after, rtol=0, atol=1e-12)
    assert torch.equal(state.ssm[1], old.ssm[1])
    assert not y[~valid].any()


@pytest.mark.parametrize("t", [1, 50])
@pytest.mark.parametrize("log_dt", [-1e3, -30.0, 5.0])
def test_extreme_steps_and_inputs_stay_finite(t, log_dt):
    mixer = layer(dtype=torch.float32)
    torch.nn.init.constant_(mixer.log_dt, log_dt)
    x = (1e4 * torch.randn(1, t, 6)).requires_grad_()
    y, state = mixer(x, mixer.init_state(1, t))
    (y.mean() + state.ssm.mean()).backward()
    tensors = [y, state.ssm, x.grad, *(parameter.grad for parameter in mixer.parameters())]
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.bfloat16, 1.66e-3), (torch.float16, 2.1e-4)])
@torch.no_grad()
def test_half_precision_keeps_a_float32_state(dtype, floor):
    mixer = layer(dtype=dtype)
    x = torch.randn(2, 60, 6, dtype=dtype)
    expected, h = oracle(mixer, x)
    y, state = mixer(x, mixer.init_state(2, 60, dtype=dtype))
    assert (y.dtype, state.ssm.dtype) == (dtype, torch.float32)
    check(y, expected, 4 * floor)  # four roundings: the system's output, GELU, the projection, the gate
    assert (state.ssm - h).square().mean() <= 1e-6**2 * h.square().mean()


@torch.no_grad()
def test_autocast_keeps_a_float32_state():
    mixer = layer(dtype=torch.float32)
    x = torch.randn(2, 30, 6)
    expected, _ = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x, mixer.init_state(2, 30))
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.02)


# ---------------------------------------------------------------------------------------------------------------- state
@torch.no_grad()
def test_a_state_is_used_once_and_for_the_right_rows():
    mixer = layer()
    state = mixer.init_state(2, 8, dtype=torch.float64)
    mixer(torch.randn(2, 3, 6).double(), state)
    with pytest.raises(StateError, match="consumed"):
        mixer(torch.randn(2, 1, 6).double(), state)
    with pytest.raises(StateError, match="rows"):
        mixer(torch.randn(3, 1, 6).double(), mixer.init_state(2, 8, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="s4"):
        mixer.init_state(1, 8).check_rollback(1)


@torch.no_grad()
def test_nothing_is_cached_between_calls():
    mixer = layer()
    x = torch.randn(1, 12, 6).double()
    mixer(x)
    mixer(x, mixer.init_state(1, 12, dtype=torch.float64))
    for parameter in (mixer.log_dt, mixer.A_imag, mixer.C):
        parameter.mul_(0.9)
    check(mixer(x)[0], oracle(mixer, x)[0], 1e-12)
    check(run(mixer, x, [1] * 12, mixer.init_state(1, 12, dtype=torch.float64))[0], oracle(mixer, x)[0], 1e-12)


def test_the_future_does_not_reach_the_past():
    mixer = layer(dtype=torch.float32)
    x = torch.randn(1, 90, 6)
    loud = torch.cat([x[:, :40], 1e3 * x[:, 40:]], dim=1)
    error = (mixer(loud)[0] - mixer(x)[0])[:, :40].abs().max()
    assert error <= 2e-6 * loud.square().mean().sqrt()


# ------------------------------------------------------------------------------------------------------- initial values
def test_first_values():
    mixer = S4(S4Config(dt_min=1e-2, dt_max=1.0), 512)
    assert (mixer.log_A_real == math.log(0.5)).all()
    assert mixer.A_imag.max().item() == pytest.approx(1303.27, abs=0.01)
    for parameter in (mixer.log_A_real, mixer.A_imag, mixer.P, mixer.B):
        assert (parameter == parameter[0]).all()
    assert mixer.C.var().item() == pytest.approx(0.5, rel=0.05)
    assert mixer.C.mean().item() == pytest.approx(0, abs=0.02)
    assert mixer.D.std().item() == pytest.approx(1, rel=0.1)
    log10_dt = mixer.log_dt / math.log(10)
    assert -2 <= log10_dt.min().item() < -1.95
    assert -0.05 < log10_dt.max().item() <= 0
    assert log10_dt.mean().item() == pytest.approx(-1, abs=0.1)
    y, _ = S4(S4Config(), 64)(torch.randn(4, 512, 64))
    assert 0.1 < y.square().mean().sqrt() < 1


def test_first_values_do_not_depend_on_where_they_are_made():
    here = S4(S4Config(), 8)
    here.reset_parameters(Streams(3))
    with torch.device("meta"):
        away = S4(S4Config(), 8)
    away = away.to_empty(device="cpu")
    away.reset_parameters(Streams(3))
    for (name, a), (_, b) in zip(here.named_parameters(), away.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    away.reset_parameters(Streams(4))
    assert not torch.equal(here.C, away.C)
    assert torch.equal(here.A_imag, away.A_imag)


def test_nothing_is_complex_and_every_number_is_a_parameter():
    mixer = S4(S4Config(), 4)
    assert not list(mixer.buffers())
    assert not any(parameter.is_complex() for parameter in mixer.parameters())
    assert not mixer.init_state(1, 1).ssm.is_complex()


# ------------------------------------------------------------------------------------------------------------- contract
def test_declarations_name_what_exists():
    mixer = S4(S4Config(), 4)
    names = {name for name, _ in mixer.named_parameters()}
    assert set(S4.param_groups) <= names
    for name in ("log_A_real", "A_imag", "P", "B", "log_dt"):
        assert S4.param_groups[name] == {"weight_decay": 0.0, "lr_max": 1e-3}
    assert all(isinstance(mixer.get_submodule(name), torch.nn.Linear) for name in S4.residual_projections)
    assert mixers.get("s4") is S4
    assert S4.letter == "S"
    assert S4.recurrent
    assert not S4.rolls_back


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"d_state": 7}, "d_state: 7"),
        ({"d_state": 0}, "d_state: 0"),
        ({"d_state": True}, "d_state"),
        ({"d_state": 10**9}, "d_state"),
        ({"d_state": 64.0}, "d_state"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": math.nan}, "dt_max"),
        ({"dt_max": math.inf}, "dt_max"),
        ({"dt_min": 0.2}, "dt_min: 0.2"),
    ],
)
def test_bad_configs_are_refused(config, named):
    with pytest.raises(SpecError, match=named):
        S4(S4Config(**config), 4)


@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize("past", [0, 5])
@torch.no_grad()
def test_cost(tokens, past):
    mixer = S4(S4Config(d_state=16), 32)
    cost = S4.cost(mixer.config, 32)
    assert cost.parameters == sum(parameter.numel() for parameter in mixer.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        state = mixer.init_state(1, 99, dtype=dtype)
        assert cost.state(99, dtype.itemsize).total == cost.state(99, dtype.itemsize).ssm == state.nbytes
    x, state = torch.randn(1, tokens, 32), mixer.init_state(1, 99) if past else None
    with FlopCounterMode(display=False) as counter:
        mixer(x, state)
    assert cost.forward(tokens, past).matmul == counter.get_total_flops()


def test_hooks_see_the_projection():
    mixer, seen = layer(), []
    mixer.output_linear.register_forward_hook(lambda *_: seen.append(1))
    mixer(torch.randn(1, 4, 6).double())
    assert seen == [1]


def test_a_context_of_its_own_changes_nothing():
    mixer = layer()
    x = torch.randn(2, 9, 6).double()
    assert torch.equal(mixer(x)[0], mixer(x, None, Context.of(x))[0])
