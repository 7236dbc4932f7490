"""The MLPs against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from hybridlm.layers.init import Streams
from hybridlm.registry import mlps

DENSE = [name for name in mlps.names() if name != "moe"]  # tests/layers/test_moe.py has that


@pytest.mark.parametrize(("d_model", "width"), [(32, 128), (256, 704), (100, 320), (1031, 2752)])
def test_swiglu_is_eight_thirds_wide_rounded_up_to_64(d_model, width):
    assert mlps.get("swiglu").Config().resolve(d_model).width == width


@pytest.mark.parametrize("name", DENSE)
def test_every_mlp_is_its_formula(name):
    mlp = mlps.get(name)(mlps.get(name).Config(width=24), 16).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    up = x @ mlp.up_proj.weight.T
    hidden = {
        "geglu": lambda: up * F.gelu(x @ mlp.gate_proj.weight.T),
        "gelu": lambda: up * 0.5 * (1 + torch.erf(up / 2**0.5)),
        "relu2": lambda: up.clamp(min=0) ** 2,
        "swiglu": lambda: up * F.silu(x @ mlp.gate_proj.weight.T),
    }[name]()
    torch.testing.assert_close(mlp(x), hidden @ mlp.down_proj.weight.T)


@pytest.mark.parametrize("name", DENSE)
def test_every_mlp_costs_what_it_says_and_starts_from_its_streams(name):
    cls = mlps.get(name)
    config = cls.Config().resolve(40)
    a, b = cls(config, 40), cls(config, 40)
    assert cls.cost(config, 40).parameters == sum(p.numel() for p in a.parameters())
    assert cls.cost(config, 40).forward(7, 0).matmul == 14 * cls.cost(config, 40).parameters
    a.reset_parameters(Streams(3))
    b.reset_parameters(Streams(3))
    for left, right in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(left, right)
        assert 0.8 < left.std() * (3 * left.shape[1]) ** 0.5 < 1.2


@pytest.mark.parametrize("width", [0, -1, True, 2.5, 1 << 30])
def test_impossible_widths_are_refused(width):
    for name in DENSE:
        with pytest.raises(ValueError, match="width"):
            mlps.get(name).Config(width=width).resolve(16)
