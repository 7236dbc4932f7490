"""What is special about gated_deltanet: keys that are replaced, signs that change, zeros that stay finite."""

import pytest
import torch

from hybridlm.errors import SpecError
from hybridlm.layers.gated_deltanet import GatedDeltaNet
from hybridlm.testing import Solo
from hybridlm.testing.knobs import set_rate


def test_rows_of_zeros_have_finite_gradients():
    """A query or key of zeros has length 0, in every token or in some."""
    for x in (torch.zeros(2, 20, 32), torch.randn(2, 20, 32) * (torch.rand(2, 20, 1) < 0.5)):
        mixer, x = GatedDeltaNet(GatedDeltaNet.Config(heads=4), 32), x.requires_grad_()
        y, _ = mixer(x)
        gradients = torch.autograd.grad(y.square().sum() + y.sum(), [x, *mixer.parameters()])
        assert all(v.isfinite().all() for v in (y, *gradients))


@pytest.mark.parametrize("negative", [False, True])
def test_the_sign_of_a_memory(negative):
    """One key again and again with nothing to write: it is taken away, or, with beta near 2, turns over each time."""
    config = {"heads": 1, "negative_eigenvalues": negative}
    solo = Solo("gated_deltanet", config=config, dtype=torch.float64)
    mixer, values = solo.module, slice(64, 96)
    with torch.no_grad():
        mixer.in_proj_qkv.weight[values] = 0
        mixer.in_proj_b.weight.abs_().mul_(100)
        set_rate(mixer, 1e-12)
    x = torch.ones(1, 40, 32).double()
    state = solo.run(x[:, :30], solo.init_state(1))[1]
    state.layers[0].ssm.copy_(torch.randn(1, 1, 32, 32))
    before = state.layers[0].ssm.clone()
    once = solo.run(x[:, 30:31], state)[1]
    first = once.layers[0].ssm.clone()
    twice = solo.run(x[:, 31:32], once)[1].layers[0].ssm
    assert (first - before).norm() > 0.1
    torch.testing.assert_close(twice, before if negative else first, rtol=1e-4, atol=1e-4)


def test_bf16_weights_keep_a_float32_state():
    mixer = GatedDeltaNet(GatedDeltaNet.Config(heads=4, key_heads=2), 32).to(torch.bfloat16)
    state = mixer.init_state(2, 30, dtype=torch.bfloat16)
    y, state = mixer(torch.randn(2, 20, 32, dtype=torch.bfloat16), state)
    assert (y.dtype, state.conv.dtype, state.ssm.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"heads": 5}, r"heads: 5 does not divide d_model = 32; use 4 or 8, or give head_dim"),
        ({"heads": 4, "key_heads": 3}, r"key_heads: 3 does not divide heads = 4; use 2 or 4"),
        ({"heads": True}, r"heads: True is not an integer"),
        ({"d_key": 0}, r"d_key: 0 is out of range"),
        ({"d_conv": 0}, r"d_conv: 0 is out of range"),
        ({"negative_eigenvalues": 1}, r"negative_eigenvalues: 1; it must be true or false"),
        ({"gate": "yes"}, r"gate: 'yes'; it must be true or false"),
        ({"chunk": 1}, r"chunk: 1 is out of range"),
    ],
)
def test_bad_fields_are_named(fields, rule):
    with pytest.raises(SpecError, match=rule):
        GatedDeltaNet.Config(**fields).resolve(32)


@pytest.mark.parametrize("d_model", [32, 33, 37, 97, 101, 192, 1000])
def test_defaults_suit_every_width(d_model):
    config = GatedDeltaNet.Config().resolve(d_model)
    assert config.heads * config.head_dim == d_model


def test_shape_of_qwen3_next():
    """Qwen3-Next-80B-A3B: width 2048, 16 key heads and 32 heads of 128. The sizes of its layer by hand."""
    fields = {"heads": 32, "key_heads": 16, "head_dim": 128, "d_key": 128}
    cost = GatedDeltaNet.cost(GatedDeltaNet.Config(**fields).resolve(2048), 2048)
    qkvz, ba, conv, out = 2048 * 12288, 2048 * 64, 8192 * 4, 4096 * 2048
    assert cost.parameters == qkvz + ba + conv + out + 32 + 32 + 128
    assert cost.state(1000, 2).ssm == 32 * 128 * 128 * 4 + 8192 * 3 * 2
