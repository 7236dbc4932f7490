"""mamba: its config, initial values, cost, and one call equal to many, over documents and pads."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.checks import LARGEST
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.mamba import Mamba, MambaConfig


def mixer(d_model=12, dtype=torch.float64, **fields):
    """A mixer with every parameter random, so that nothing hides behind a zero or a one."""
    made = Mamba(MambaConfig(**{"d_state": 3, "dt_rank": 2, **fields}), d_model).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_defaults_are_legal_at_every_width():
    for d_model in range(32, 400):
        config = MambaConfig().resolve(d_model)
        assert config.dt_rank == -(-d_model // 16)
        assert config.resolve(d_model) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_state": 0}, "d_state: 0 is out of range"),
        ({"d_state": True}, "d_state: True is not an integer"),
        ({"d_state": 10**9}, "d_state: 1000000000 is out of range"),
        ({"d_conv": 1}, "d_conv: 1 is out of range; it must be an integer from 2"),
        ({"expand": 1.5}, "expand: 1.5 is not an integer"),
        ({"dt_rank": -1}, f"dt_rank: -1 is out of range; it must be an integer from 1 to {LARGEST}"),
        ({"bcdt_norm": 1}, "bcdt_norm: 1; it must be true or false"),
        ({"dt_min": float("nan")}, "dt_min: nan is not a finite number"),
        ({"dt_max": 0.0}, "dt_max: 0.0 is out of range"),
        ({"dt_min": 0.2}, "dt_min: 0.2 is greater than dt_max = 0.1"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=message):
        MambaConfig(**fields).resolve(64)


def test_initial_values():
    made = Mamba(MambaConfig(), 512)
    made.reset_parameters(Streams(0))
    dt = F.softplus(made.dt_proj.bias)
    assert torch.allclose(made.A_log.exp(), torch.arange(1, 17).float().expand(1024, 16))
    assert torch.equal(made.D, torch.ones(1024))
    assert 1e-3 * 0.999 < dt.min() < 1.1e-3
    assert 0.09 < dt.max() < 0.1 * 1.001
    assert abs(dt.log10().mean() + 2) < 0.1  # log-uniform
    assert 0.98 * 32**-0.5 < made.dt_proj.weight.abs().max() <= 32**-0.5
    assert 0.98 * 0.5 < made.conv1d.weight.abs().max() <= 0.5
    for layer in (made.in_proj, made.x_proj, made.out_proj):
        assert abs(layer.weight.std() * (3 * layer.in_features) ** 0.5 - 1) < 0.02


def test_steps_have_a_floor():
    made = Mamba(MambaConfig(dt_min=1e-6, dt_max=1e-5), 64)
    assert torch.allclose(F.softplus(made.dt_proj.bias), torch.tensor(1e-4), rtol=1e-3)


def test_meta_then_reset_gives_the_same():
    config = MambaConfig(bcdt_norm=True)
    with torch.device("meta"):
        made = Mamba(config, 32)
    made.to_empty(device="cpu")
    direct = Mamba(config, 32)
    made.reset_parameters(Streams(3))
    direct.reset_parameters(Streams(3))
    for one, other in zip(made.parameters(), direct.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fields", [{}, {"bcdt_norm": True, "expand": 3, "d_conv": 2, "dt_rank": 7, "d_state": 5}])
@pytest.mark.parametrize("d_model", [32, 37])
def test_cost_is_exact(d_model, fields):
    config = MambaConfig(**fields).resolve(d_model)
    made, cost = Mamba(config, d_model), Mamba.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 15, 16, 17, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


def test_scan_flops_by_hand():
    """d_model 1, so 2 channels; N = 3, k = 4. A channel: 4 * 3 + 3 in the scan, 4 * 2 in the convolution."""
    cost = Mamba.cost(MambaConfig(d_state=3).resolve(1), 1)
    assert cost.forward(1, 9).scan == 2 * (15 + 8)
    assert cost.forward(70, 0).scan == 70 * 2 * (15 + 8)


@pytest.mark.parametrize("cuts", [[1, 39], [2, 38], [3, 37], [15, 16, 9], [1, 2, 2, 3, 1, 31]])
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
    made, x = mixer(bcdt_norm=True), torch.randn(1, 20, 12).double()
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


def test_state_and_steps_stay_wide():
    """Under bf16 weights and under autocast: a float32 SSM state, and dt computed in float32."""
    cases = [(mixer(dtype=torch.bfloat16), torch.bfloat16, False), (mixer(dtype=torch.float32), torch.float32, True)]
    for made, dtype, autocast in cases:
        seen = []
        made.dt_proj.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = made(torch.randn(2, 20, 12, dtype=dtype), made.init_state(2, 20, dtype=dtype))
        assert seen == [torch.float32]
        assert (y.dtype, state.ssm.dtype, state.conv.dtype) == (torch.bfloat16, torch.float32, dtype)


def test_every_leaf_module_is_called():
    made, called = mixer(bcdt_norm=True), set()
    leaves = {name: module for name, module in made.named_modules() if not list(module.children())}
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    made(torch.randn(1, 3, 12).double())
    assert called == set(leaves)


def test_named_parameters_exist():
    names = dict(mixer().named_parameters())
    assert set(Mamba.param_groups) <= set(names)
    assert {f"{name}.weight" for name in Mamba.residual_projections} <= set(names)


def test_stacked_models_train_under_vmap():
    """Several models as one, torch.func style: gradients of each equal those of each alone."""
    models, x = [mixer(), mixer()], torch.randn(2, 20, 12).double()
    stacked, _ = torch.func.stack_module_state(models)

    def loss(parameters):
        return torch.func.functional_call(models[0], parameters, (x,))[0].square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, model in enumerate(models):
        alone = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
        for name, gradient in alone.items():
            torch.testing.assert_close(gradients[name][i], gradient, rtol=1e-9, atol=1e-12)
