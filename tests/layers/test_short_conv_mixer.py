"""short_conv: its config, initial values and cost, and what the gates are. The laws and the oracle do the rest."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.short_conv_mixer import ShortConvMixer, ShortConvMixerConfig
from tests.layers.common import assert_trains_stacked, moved

SHAPES = [{}, {"gate": False}, {"bias": True, "d_conv": 5}, {"bias": True, "gate": False, "d_conv": 2}]


def mixer(d_model=12, **fields):
    """A mixer with every parameter random, so that nothing hides behind a zero."""
    return moved(ShortConvMixer(ShortConvMixerConfig(**fields), d_model).double())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_conv": 1}, "d_conv: 1 is out of range; it must be an integer from 2 to 64"),
        ({"d_conv": True}, "d_conv: True is not an integer"),
        ({"gate": 1}, "gate: 1; it must be true or false"),
        ({"bias": "no"}, "bias: 'no'; it must be true or false"),
    ],
)
def test_bad_configs_name_field_value_and_rule(fields, message):
    with pytest.raises(SpecError, match=message):
        ShortConvMixerConfig(**fields).resolve(64)


def test_initial_values():
    made = ShortConvMixer(ShortConvMixerConfig(bias=True, d_conv=4), 512)
    made.reset_parameters(Streams(0))
    for layer in (made.in_proj, made.out_proj):
        assert abs(layer.weight.std() * (3 * 512) ** 0.5 - 1) < 0.02
        assert not layer.bias.any()
    assert 0.98 * 0.5 < made.conv.weight.abs().max() <= 0.5


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("d_model", [32, 37])
def test_cost_is_exact(d_model, fields):
    config = ShortConvMixerConfig(**fields).resolve(d_model)
    made, cost = ShortConvMixer(config, d_model), ShortConvMixer.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


@pytest.mark.parametrize(("fields", "by_hand"), [({}, 5), ({"bias": True}, 6), ({"d_conv": 2, "gate": False}, 3)])
def test_scan_flops_by_hand(fields, by_hand):
    """k products and k - 1 sums a channel, and one more sum for a bias."""
    cost = ShortConvMixer.cost(ShortConvMixerConfig(**fields).resolve(8), 8)
    assert cost.forward(10, 0).scan == 10 * 8 * by_hand


def test_gates_stand_before_and_after_the_convolution():
    """With B = C = 1 what is left is the convolution alone; one more factor in u each."""
    made, x = mixer(), torch.randn(2, 9, 12).double()
    torch.testing.assert_close(made(3 * x)[0], 27 * made(x)[0])
    weight = made.in_proj.weight[24:]
    filtered = made.conv(x @ weight.T, None, made.enter(x, None, None)[1])[0]
    made.in_proj.register_forward_hook(
        lambda _, args, out: torch.cat([torch.ones_like(out[..., :24]), out[..., 24:]], -1)
    )
    torch.testing.assert_close(made(x)[0], made.out_proj(filtered))


@pytest.mark.parametrize("fields", SHAPES)
def test_stacked_models_train_under_vmap(fields):
    models, x = [mixer(**fields), mixer(**fields)], torch.randn(2, 9, 12).double()
    assert_trains_stacked(models, x)
