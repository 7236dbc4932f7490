"""mamba: its config, initial values, cost, and one call equal to many, over documents and pads."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.checks import LARGEST
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.mamba import Mamba, MambaConfig
from hybridlm.ops.selective_scan import selective_scan
from tests.layers.common import assert_trains_stacked, moved


def mixer(d_model=12, dtype=torch.float64, **fields):
    """A mixer with every parameter random, so that nothing hides behind a zero or a one."""
    return moved(Mamba(MambaConfig(**{"d_state": 3, "dt_rank": 2, **fields}), d_model).to(dtype))


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
        ({"d_conv": 0}, "d_conv: 0 is out of range; it must be an integer from 1"),
        ({"expand": 1.51}, "expand: 1.51 times d_model = 64 is no whole number from 1 up; use 1.5 or 1.515625"),
        ({"expand": 0.001}, "expand: 0.001 times d_model = 64 is no whole number from 1 up; use 0.015625"),
        ({"expand": 0}, "expand: 0 times d_model = 64 is no whole number from 1 up; use 0.015625"),
        ({"expand": 65}, "expand: 65 is out of range; it must be a number from 0 to 64"),
        ({"expand": float("nan")}, "expand: nan is not a finite number"),
        ({"expand": True}, "expand: True is not a finite number"),
        ({"discretization": "zho"}, "discretization: 'zho'; it must be one of euler, zoh. Did you mean 'zoh'?"),
        ({"discretization": True}, "discretization: True; it must be one of euler, zoh"),
        ({"select": "dt"}, "select: 'dt'; it must be a list of dt, B, C"),
        ({"select": ["dt", "b"]}, "select.1: 'b'; it must be one of dt, B, C. Did you mean 'B'?"),
        ({"select": ["dt", 3]}, "select.1: 3; it must be one of dt, B, C"),
        ({"select": ["B", "dt", "B"]}, "select.2: 'B' is there already; each of dt, B, C stands once; 'C' is missing"),
        ({"gate": 1}, "gate: 1; it must be true or false"),
        ({"dt_rank": -1}, f"dt_rank: -1 is out of range; it must be an integer from 1 to {LARGEST}"),
        ({"bcdt_norm": 1}, "bcdt_norm: 1; it must be true or false"),
        ({"dt_min": float("nan")}, "dt_min: nan is not a finite number"),
        ({"dt_max": 0.0}, "dt_max: 0.0 is out of range"),
        ({"dt_min": 0.2}, "dt_min: 0.2 is greater than dt_max = 0.1"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=re.escape(message)):
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


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bcdt_norm": True, "expand": 3, "d_conv": 1, "dt_rank": 7, "d_state": 5},
        {"gate": False, "select": [], "discretization": "zoh"},
        {"select": ["dt"], "bcdt_norm": True, "discretization": "zoh"},
        {"select": ["B", "C"], "bcdt_norm": True},
        {"select": ["C"], "gate": False},
    ],
)
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
    held = Mamba.cost(MambaConfig(d_state=3, discretization="zoh").resolve(1), 1)
    assert held.forward(70, 0).scan == 70 * 2 * (6 * 3 + 2 + 8)  # dt A, / A, B; fade, write, add; D x, add


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


SUBSETS = [names for size in range(4) for names in itertools.combinations(("dt", "B", "C"), size)]


@pytest.mark.parametrize("select", SUBSETS)
def test_every_leaf_module_is_called(select):
    made, called = mixer(bcdt_norm=True, select=select), set()
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
    models, x = [mixer(), mixer()], torch.randn(2, 20, 12).double()
    assert_trains_stacked(models, x)


# ------------------------------------------------------------------------------------------- the ablation of the paper
def test_expand_may_be_a_fraction():
    """As in Falcon-H1; what is whole stays an integer, so that nothing that is printed changes."""
    assert Mamba(MambaConfig(expand=1.5), 34).D.shape == (51,)
    assert Mamba(MambaConfig(expand=55 / 37), 37).D.shape == (55,)
    assert Mamba.cost(MambaConfig(expand=1.5).resolve(34), 34).parameters == sum(
        parameter.numel() for parameter in Mamba(MambaConfig(expand=1.5), 34).parameters()
    )
    for expand in (3, 3.0):
        assert repr(MambaConfig(expand=expand).resolve(37).expand) == "3"


@pytest.mark.parametrize("select", SUBSETS)
def test_what_is_not_selected_is_a_vector(select):
    """Table 7: the projection of the token loses its columns, and a parameter of its own takes their place."""
    made = mixer(select=select, d_state=3, dt_rank=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
    columns = 2 * ("dt" in select) + 3 * ("B" in select) + 3 * ("C" in select)
    assert shapes.get("x_proj.weight") == ((columns, 24) if columns else None)
    assert [shapes.get("B"), shapes.get("C")] == [None if name in select else (3,) for name in ("B", "C")]
    assert shapes.get("dt_proj.weight") == ((24, 2) if "dt" in select else None)
    assert shapes["dt_proj.bias"] == (24,)


def kernel_error(made, x):
    """How far the SSM is from a convolution with its answer to an impulse: RMS(difference) / RMS(output)."""

    def ssm(x):
        dt, A, B, C = made.select(x)
        return selective_scan(x, dt, A, B, C, made.D)[0]

    impulse = torch.zeros_like(x)
    impulse[:, 0] = 1
    kernel, t = ssm(impulse), x.shape[1]
    convolved = torch.stack([(kernel[:, : i + 1].flip(1) * x[:, : i + 1]).sum(1) for i in range(t)], 1)
    return ((ssm(x) - convolved).norm() / convolved.norm()).item()


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("select", SUBSETS)
def test_without_selection_it_is_a_convolution(select, discretization):
    """Linear and time-invariant: one kernel a channel, for all inputs and places. With any selection it is none."""
    made, x = mixer(select=select, discretization=discretization), torch.randn(2, 30, 24).double()
    assert (kernel_error(made, x) < 1e-13) == (not select)
    assert kernel_error(made, x) > 1e-3 or not select


def test_a_shifted_input_shifts_the_output():
    """The whole layer, once its convolution has no bias that would set in at the first token."""
    made, x = mixer(select=[]), torch.randn(2, 30, 12).double()
    torch.nn.init.zeros_(made.conv1d.bias)
    later = torch.cat([torch.zeros(2, 7, 12).double(), x], dim=1)
    torch.testing.assert_close(made(later)[0][:, 7:], made(x)[0], rtol=1e-12, atol=1e-13)


def test_selection_without_weights_is_none():
    """With W_x = 0 the step is softplus of its bias, as it is without selection."""
    made, fixed = mixer(select=["dt"]), mixer(select=[])
    made.B, made.C = fixed.B, fixed.C
    torch.nn.init.zeros_(made.x_proj.weight)
    kept = {name: tensor for name, tensor in made.state_dict().items() if name in fixed.state_dict()}
    fixed.load_state_dict(kept)
    x = torch.randn(2, 20, 12).double()
    torch.testing.assert_close(made(x)[0], fixed(x)[0], rtol=1e-12, atol=1e-14)


def test_steps_begin_alike_with_and_without_selection():
    made, fixed = Mamba(MambaConfig(), 32), Mamba(MambaConfig(select=("B", "C")), 32)
    made.reset_parameters(Streams(5))
    fixed.reset_parameters(Streams(5))
    assert torch.equal(made.dt_proj.bias, fixed.dt_proj.bias)


def test_gate_of_one_is_no_gate():
    """silu(z) = 1 at z = 1.2784645...: a constant gate, made of the input's constant channel, changes nothing."""
    made, bare = mixer(), mixer(gate=False)
    x = torch.cat([torch.randn(2, 20, 11), torch.ones(2, 20, 1)], dim=2).double()
    z = torch.tensor(1.278464542761074, dtype=torch.float64)
    assert F.silu(z).item() == pytest.approx(1, abs=1e-15)
    with torch.no_grad():
        made.in_proj.weight[24:] = 0
        made.in_proj.weight[24:, 11] = z
    bare.load_state_dict(made.state_dict() | {"in_proj.weight": made.in_proj.weight[:24]})
    torch.testing.assert_close(made(x)[0], bare(x)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_rules_meet_as_steps_shrink(discretization):
    """Euler's rule and zero-order hold differ at steps of usual size, and not at very small ones."""
    made, other = mixer(discretization=discretization), mixer(discretization="zoh")
    other.load_state_dict(made.state_dict())
    x, differences = torch.randn(2, 30, 12).double(), []
    for bias in (0.0, -14.0):
        for layer in (made, other):
            torch.nn.init.constant_(layer.dt_proj.bias, bias)
            torch.nn.init.zeros_(layer.dt_proj.weight)
            torch.nn.init.zeros_(layer.D)
        y = made(x)[0]
        differences.append(((y - other(x)[0]).norm() / y.norm()).item())
    assert (differences[0] > 0.05) == (discretization == "euler")
    assert differences[1] < 1e-5
