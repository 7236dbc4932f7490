"""rwkv7: its config, initial values, cost, what its parts mean, and stacks under vmap. Laws and oracle do the rest."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import rwkv7
from hybridlm.layers.init import Streams
from hybridlm.layers.rwkv7 import RWKV7, RWKV7Config, steps_back
from tests.layers.common import assert_trains_stacked, moved


def mixer(d_model=12, **fields):
    """A mixer with every parameter random, so that nothing hides behind a zero or a one."""
    return moved(
        RWKV7(RWKV7Config(**{"head_dim": 4, "w_rank": 3, "a_rank": 2, "g_rank": 5, **fields}), d_model).double()
    )


def test_defaults_are_legal_at_every_width():
    """Odd and prime widths too: about d / 64 heads, of more than one channel."""
    for d_model in range(32, 400):
        config = RWKV7Config().resolve(d_model)
        assert d_model % config.head_dim == 0
        assert config.head_dim >= 32
        assert config.resolve(d_model) == config


@pytest.mark.parametrize(("d_model", "ranks"), [(32, (32, 32, 32)), (768, (64, 64, 128)), (4096, (160, 160, 320))])
def test_ranks_are_those_of_the_papers_code(d_model, ranks):
    config = RWKV7Config().resolve(d_model)
    assert (config.w_rank, config.a_rank, config.g_rank) == ranks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 48}, "head_dim: 48 does not divide d_model = 64; use 32 or 64"),
        ({"head_dim": 1}, "head_dim: 1 is out of range; it must be an integer from 2"),
        ({"head_dim": 8.0}, "head_dim: 8.0 is not an integer"),
        ({"w_rank": 0}, "w_rank: 0 is out of range"),
        ({"a_rank": True}, "a_rank: True is not an integer"),
        ({"g_rank": -1}, "g_rank: -1 is out of range"),
        ({"chunk": 1}, "chunk: 1 is out of range; it must be an integer from 2"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=message):
        RWKV7Config(**fields).resolve(64)


def test_at_first_decay_and_rate_do_not_depend_on_the_token():
    made = RWKV7(RWKV7Config(), 256)
    made.reset_parameters(Streams(0))
    decay, rate = made.decay(torch.randn(1, 5, 256)), made.rate(torch.randn(1, 5, 256))
    assert torch.equal(decay, made.decay.up.bias.expand_as(decay))
    assert not rate.any()
    memory = 1 / (torch.sigmoid(decay[0, 0]) * torch.exp(torch.tensor(-0.5)))
    assert 1000 < memory[0] < 1200
    assert 8 < memory[-1] < 10
    assert (memory.diff() < 0).all()


@pytest.mark.parametrize("fields", [{}, {"w_rank": 1, "a_rank": 2, "g_rank": 3, "chunk": 5}, {"head_dim": 4}])
@pytest.mark.parametrize("d_model", [32, 60])
def test_cost_is_exact(d_model, fields):
    config = RWKV7Config(**fields).resolve(d_model)
    made, cost = RWKV7(config, d_model), RWKV7.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 16, 17, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


def test_the_token_before():
    """Documents, pads and a state: nothing stands before a document but what the state holds of it."""
    x, last = torch.arange(1.0, 11).view(2, 5, 1), torch.tensor([[100.0], [200.0]])
    ids = torch.tensor([[0, 0, 7, 7, 7], [3, 3, 3, 3, 4]])
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    back, held = steps_back(x, None, Context.of(x))
    assert (back + x)[..., 0].tolist() == [[0, 1, 2, 3, 4], [0, 6, 7, 8, 9]]
    assert held[:, 0].tolist() == [5, 10]
    ctx = Context.of(x, valid, ids)
    back, held = steps_back(x, last, ctx)
    assert (back + x)[0, :, 0].tolist() == [100, 1, 0, 3, 4]
    assert (back + x)[1, :2, 0].tolist() == [0, 6]
    assert held[:, 0].tolist() == [5, 7]


def test_decays_and_rates_stay_within_their_bounds(monkeypatch):
    """However loud the input, w lies in (exp(-e^-1/2), 1), a in (0, 1), and the state does not explode."""
    op, given = rwkv7.generalized_delta_rule, []
    monkeypatch.setattr(rwkv7, "generalized_delta_rule", lambda *args, **more: given.extend(args) or op(*args, **more))
    made, x = mixer(), 1e3 * torch.randn(2, 200, 12).double()
    made.decay.up.weight.data.mul_(100)
    _, state = made(x, made.init_state(2, 200, dtype=x.dtype))
    _, k, v, removed, rate, decay = given
    assert -math.exp(-0.5) <= decay.min() < -0.6 < -0.01 < decay.max() <= 0
    assert ((-removed * rate).sum(-1) >= 0).all()
    assert (-removed * rate).sum(-1).max() <= 1
    assert state.ssm.abs().max() < 200 * v.abs().max() * k.abs().max()


def test_heads_are_apart():
    """What the second head reads and writes does not reach the first one's norm."""
    made, x, seen = mixer(), torch.randn(1, 9, 12).double(), []
    made.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    made(x)
    with torch.no_grad():
        made.v_proj.weight[4:8] += 1
        made.r_proj.weight[4:8] += 1
    made(x)
    assert torch.equal(seen[0][..., :4], seen[1][..., :4])
    assert torch.equal(seen[0][..., 8:], seen[1][..., 8:])
    assert not torch.isclose(seen[0][..., 4:8], seen[1][..., 4:8]).any()


def test_the_state_stays_wide():
    """Under bf16 weights and under autocast the matrix is float32."""
    for weights, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        made = mixer().to(weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = made(torch.randn(2, 20, 12, dtype=weights), made.init_state(2, 20, dtype=weights))
        assert (y.dtype, state.ssm.dtype, state.shift.dtype) == (torch.bfloat16, torch.float32, weights)


@pytest.mark.parametrize("t", [1, 40])
def test_stacked_models_train_under_vmap(t):
    models, x = [mixer(), mixer()], torch.randn(2, t, 12).double()
    assert_trains_stacked(models, x)
