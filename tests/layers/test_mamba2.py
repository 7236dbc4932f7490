"""mamba2: its config, initial values, cost, and one call equal to many, over documents and pads."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.checks import LARGEST
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.mamba2 import Mamba2, Mamba2Config
from tests.layers.common import assert_trains_stacked, moved


def mixer(d_model=12, dtype=torch.float64, **fields):
    """A mixer with every parameter random, so that nothing hides behind a zero or a one."""
    return moved(Mamba2(Mamba2Config(**{"d_state": 3, "head_dim": 4, "chunk": 8, **fields}), d_model).to(dtype))


def test_defaults_are_legal_at_every_width():
    """Odd and prime widths too: a head has the most channels up to 64 that divide the inner stream."""
    for d_model in range(32, 400):
        config = Mamba2Config().resolve(d_model)
        assert config.heads(d_model) * config.head_dim == 2 * d_model
        assert config.head_dim <= 64
        assert all(2 * d_model % larger for larger in range(config.head_dim + 1, 65))
        assert config.resolve(d_model) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_state": 0}, "d_state: 0 is out of range"),
        ({"d_state": True}, "d_state: True is not an integer"),
        ({"d_state": 10**9}, "d_state: 1000000000 is out of range"),
        ({"d_conv": 0}, "d_conv: 0 is out of range; it must be an integer from 1"),
        ({"expand": 1.51}, "expand: 1.51 times d_model = 64 is no whole number from 1 up; use 1.5 or 1.515625"),
        ({"gated_norm": None}, "gated_norm: None; it must be true or false"),
        ({"head_dim": 48}, "head_dim: 48 does not divide expand .* = 128; use 32 or 64"),
        ({"n_groups": 3}, "n_groups: 3 does not divide heads .* = 2; use 2"),
        ({"n_groups": 0}, f"n_groups: 0 is out of range; it must be an integer from 1 to {LARGEST}"),
        ({"chunk": 1}, "chunk: 1 is out of range; it must be an integer from 2"),
        ({"dt_min": float("nan")}, "dt_min: nan is not a finite number"),
        ({"dt_max": 0.0}, "dt_max: 0.0 is out of range"),
        ({"dt_min": 0.2}, "dt_min: 0.2 is greater than dt_max = 0.1"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=message):
        Mamba2Config(**fields).resolve(64)


def test_initial_values():
    made = Mamba2(Mamba2Config(head_dim=1), 512)
    made.reset_parameters(Streams(0))
    A, dt = made.A_log.exp(), F.softplus(made.dt_bias)
    assert 1 <= A.min() < 1.1
    assert 15.9 < A.max() <= 16.001
    assert abs(A.mean() - 8.5) < 0.3  # uniform, not log-uniform
    assert torch.equal(made.D, torch.ones(1024))
    assert torch.equal(made.norm.weight, torch.ones(1024))
    assert 1e-3 * 0.999 < dt.min() < 1.1e-3
    assert 0.09 < dt.max() < 0.1 * 1.001
    assert abs(dt.log10().mean() + 2) < 0.1  # log-uniform
    assert 0.98 * 0.5 < made.conv1d.weight.abs().max() <= 0.5
    for layer in (made.in_proj, made.out_proj):
        assert abs(layer.weight.std() * (3 * layer.in_features) ** 0.5 - 1) < 0.02


def test_steps_have_a_floor():
    made = Mamba2(Mamba2Config(dt_min=1e-6, dt_max=1e-5), 64)
    assert torch.allclose(F.softplus(made.dt_bias), torch.tensor(1e-4), rtol=1e-3)


def test_meta_then_reset_gives_the_same():
    config = Mamba2Config(n_groups=2, head_dim=8)
    with torch.device("meta"):
        made = Mamba2(config, 32)
    made.to_empty(device="cpu")
    direct = Mamba2(config, 32)
    made.reset_parameters(Streams(3))
    direct.reset_parameters(Streams(3))
    for one, other in zip(made.parameters(), direct.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head_dim": 1, "n_groups": 2, "expand": 4, "d_conv": 1, "d_state": 5, "chunk": 16},
        {"gated_norm": False, "d_state": 7},
    ],
)
@pytest.mark.parametrize("d_model", [32, 37])
def test_cost_is_exact(d_model, fields):
    config = Mamba2Config(**fields).resolve(d_model)
    made, cost = Mamba2(config, d_model), Mamba2.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 16, 17, 63, 64, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


def test_scan_flops_by_hand():
    """d_model 2, two heads of P = 2, N = 3, k = 4: ten channels of convolution. 64 + 6 tokens are two chunks of 64."""
    cost = Mamba2.cost(Mamba2Config(d_state=3, head_dim=2).resolve(2), 2)
    convolution, sums_and_mask, passed_on = 2 * 4 * 10, 2 * 2 * 64, 2 * 2 * 2 * 3
    assert cost.forward(1, 9).scan == convolution + 2 * (3 * 2 * 3 + 3 * 2 + 1)
    assert cost.forward(70, 0).scan == 70 * convolution + 128 * (sums_and_mask + 2 * (6 * 2 + 1)) + 2 * passed_on


@pytest.mark.parametrize("cuts", [[1, 39], [2, 38], [3, 37], [7, 9, 24], [1, 2, 2, 3, 1, 31]])
@pytest.mark.parametrize("gradients", [False, True])
def test_one_call_equals_many(cuts, gradients):
    made, x = mixer(), torch.randn(3, 40, 12).double()
    with torch.set_grad_enabled(gradients):
        whole, end = made(x, made.init_state(3, 40, dtype=x.dtype))
        state, pieces = made.init_state(3, 40, dtype=x.dtype), []
        for part in x.split(cuts, dim=1):
            y, state = made(part, state)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-12)
    for name, tensor in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], tensor, rtol=1e-11, atol=1e-12)


def test_documents_and_pads():
    """Documents of 5, 1 and 8 tokens in one padded row: outputs, state and gradients are those of each apart."""
    made, x = mixer(n_groups=3), torch.randn(1, 20, 12).double()
    valid = torch.arange(20)[None] < 14
    ids = torch.tensor([[1] * 5 + [2] + [3] * 14])
    padded = torch.where(valid[..., None], x, torch.nan).requires_grad_()
    empty = made.init_state(1, 20, dtype=x.dtype)
    y, state = made(padded, empty, Context.of(padded, valid, ids))
    apart = [part.clone().requires_grad_() for part in x[:, :14].split([5, 1, 8], dim=1)]
    for i, part in enumerate(apart):
        true, end = made(part, made.init_state(1, 20, dtype=x.dtype))
        ours = y[:, :14].split([5, 1, 8], dim=1)[i]
        torch.testing.assert_close(ours, true, rtol=1e-11, atol=1e-12)
        true.square().sum().backward(retain_graph=True)
    for name, tensor in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], tensor, rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad(y[:, :14].square().sum(), padded)
    torch.testing.assert_close(gradient[:, :14], torch.cat([part.grad for part in apart], 1), rtol=1e-9, atol=1e-11)
    assert torch.equal(gradient[:, 14:], torch.zeros_like(gradient[:, 14:]))


def test_the_state_stays_wide():
    """Under bf16 weights and under autocast the SSM state is float32."""
    cases = [(mixer(dtype=torch.bfloat16), torch.bfloat16, False), (mixer(dtype=torch.float32), torch.float32, True)]
    for made, dtype, autocast in cases:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = made(torch.randn(2, 20, 12, dtype=dtype), made.init_state(2, 20, dtype=dtype))
        assert (y.dtype, state.ssm.dtype, state.conv.dtype) == (torch.bfloat16, torch.float32, dtype)


def test_heads_read_their_own_group():
    """Heads 0 to 2 read group 0: what they put out does not change with the B and C of group 1."""
    made, x = mixer(n_groups=2), torch.randn(1, 20, 12).double()
    seen = []
    made.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    made(x)
    with torch.no_grad():
        rows = made.in_proj.weight[48:].split([3, 3, 3, 3, 6])  # B of each group, C of each group, dt; after z and x
        rows[1].zero_()
        rows[3].zero_()
    made(x)
    assert torch.equal(seen[0][..., :12], seen[1][..., :12])
    assert not torch.equal(seen[0][..., 12:], seen[1][..., 12:])


def test_groups_are_normalised_apart():
    """Scaling the gate of one group leaves the normalised values of the other as they are."""
    made = mixer(n_groups=2)
    y, z = torch.randn(1, 3, 24).double(), torch.randn(1, 3, 24).double()
    louder = torch.cat([y[..., :12], 1e3 * y[..., 12:]], dim=-1)
    assert torch.equal(made.norm(y, z, 2)[..., :12], made.norm(louder, z, 2)[..., :12])


def test_every_leaf_module_is_called():
    made, called = mixer(n_groups=3), set()
    leaves = {name: module for name, module in made.named_modules() if not list(module.children())}
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    made(torch.randn(1, 3, 12).double())
    assert called == set(leaves)


def test_named_parameters_exist():
    names = dict(mixer().named_parameters())
    assert set(Mamba2.param_groups) <= set(names)
    assert {f"{name}.weight" for name in Mamba2.residual_projections} <= set(names)


def test_stacked_models_train_under_vmap():
    models, x = [mixer(), mixer()], torch.randn(2, 20, 12).double()
    assert_trains_stacked(models, x)


def test_without_the_norm_the_gate_is_left():
    """As Falcon-H1 has it: what goes to the output projection is y silu(z)."""
    made = Mamba2(Mamba2Config(expand=1.5, head_dim=6, gated_norm=False), 12).double()
    x, seen = torch.randn(2, 20, 12).double(), []
    made.out_proj.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    made(x)
    z = made.in_proj(x)[..., :18]
    torch.nn.init.zeros_(made.in_proj.weight[:18].detach())  # silu(0) = 0
    made(x)
    assert torch.equal(seen[1], torch.zeros_like(seen[1]))
    with torch.no_grad():
        made.in_proj.weight[:18, 0] = 1.278464542761074 / x[0, 0, 0]  # silu = 1 at the first token
        made.in_proj.weight[:18, 1:] = 0
    made(x)
    torch.testing.assert_close(seen[0][0, 0], seen[2][0, 0] * F.silu(z[0, 0]), rtol=1e-12, atol=1e-14)
    assert made.norm is None


def test_expand_may_be_a_fraction():
    """As in Falcon-H1; what is whole stays an integer, so that nothing that is printed changes."""
    assert Mamba2(Mamba2Config(expand=1.5, head_dim=17), 34).D.shape == (3,)
    assert [repr(Mamba2Config(expand=expand).resolve(37).expand) for expand in (2, 2.0)] == ["2", "2"]
    for d_model in range(32, 400):
        config = Mamba2Config(expand=33 / 32 if d_model % 32 == 0 else 2).resolve(d_model)
        assert config.resolve(d_model) == config
