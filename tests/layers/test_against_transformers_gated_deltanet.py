"""gated_deltanet against Qwen3-Next's and Qwen3.5's layers in transformers: same weights, same outputs and steps.

Qwen3.5's names of parameters are ours; Qwen3-Next has the rows of its projections in other orders. Every parameter is
random first, biases and norms too, and exchanging entries of any one of them must be seen.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from transformers.cache_utils import DynamicCache
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextConfig as Qwen3_5Config
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

from hybridlm.layers.gated_deltanet import GatedDeltaNet
from tests.layers.common import exchanged, in_pieces, worst_token

LIMIT = 1e-5
D_MODEL, EPS, STEPS = 24, 1e-3, 4  # a large eps, so that a wrong one shows
HEADS, KEY_HEADS, P, N = 6, 3, 5, 7

SIZES = {
    "hidden_size": D_MODEL,
    "linear_num_value_heads": HEADS,
    "linear_num_key_heads": KEY_HEADS,
    "linear_key_head_dim": N,
    "linear_value_head_dim": P,
    "linear_conv_kernel_dim": 3,
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "rms_norm_eps": EPS,
}
THEIRS = {
    "qwen3_next": (Qwen3NextGatedDeltaNet, Qwen3NextConfig),
    "qwen3_5": (Qwen3_5GatedDeltaNet, Qwen3_5Config),
}


def ours():
    config = GatedDeltaNet.Config(heads=HEADS, key_heads=KEY_HEADS, head_dim=P, d_key=N, d_conv=3, chunk=16)
    return GatedDeltaNet(config, D_MODEL, eps=EPS)


NAMES = [name for name, _ in ours().named_parameters()]


@pytest.fixture(autouse=True)
def in_plain_pytorch(monkeypatch):
    """Their own formulas, and not the kernels of fla, which they take where it is installed, GPU or not."""
    for module in (modeling_qwen3_5, modeling_qwen3_next):
        for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
            monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))


def in_our_names(weights):
    """Qwen3-Next has q, k, v, z of a key head in a row, and b, a of a key head: (g (n n rp rp), d), (g (r r), d)."""
    if "in_proj_qkv.weight" in weights:
        return weights
    weights, r = dict(weights), HEADS // KEY_HEADS
    qkvz = rearrange(weights.pop("in_proj_qkvz.weight"), "(g c) d -> g c d", g=KEY_HEADS)
    q, k, v, z = (rearrange(x, "g c d -> (g c) d") for x in qkvz.split([N, N, r * P, r * P], dim=1))
    ba = rearrange(weights.pop("in_proj_ba.weight"), "(g c) d -> g c d", g=KEY_HEADS)
    b, a = (rearrange(x, "g c d -> (g c) d") for x in ba.split([r, r], dim=1))
    weights["in_proj_qkv.weight"] = torch.cat([q, k, v])
    return weights | {"in_proj_z.weight": z, "in_proj_b.weight": b, "in_proj_a.weight": a}


def make_pair(case):
    """Their layer with random parameters, ours with the same, and what theirs makes of one input."""
    layer, config = THEIRS[case]
    config = config(**SIZES)
    theirs, mine = layer(config, layer_idx=0).eval(), ours()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(random_values(name, parameter))
    mine.load_state_dict(in_our_names(theirs.state_dict()), strict=True)
    x = torch.randn(2, 21 + STEPS, D_MODEL)
    return SimpleNamespace(ours=mine, x=x, truth=play_theirs(theirs, config, x))


def random_values(name, parameter):
    """Of a size that keeps every part audible: decays between 0.1 and 4, steps about 0.5, norms about 1."""
    noise = torch.randn(parameter.shape)
    if name.endswith(("A_log", "dt_bias")):
        return noise
    return 1 + 0.5 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5


@torch.no_grad()
def play_theirs(layer, config, x):
    """Prefill, then single tokens with their cache; and all at once."""
    cache = DynamicCache(config=config)
    pieces = [layer(part, cache_params=cache) for part in x.split([x.shape[1] - STEPS, *[1] * STEPS], dim=1)]
    return torch.cat(pieces, dim=1), layer(x)


@torch.no_grad()
def play_ours(mixer, x):
    """The same with our state, the prefill in two calls."""
    return in_pieces(mixer, x, [17, x.shape[1] - STEPS - 17, *[1] * STEPS]), mixer(x)[0]


@pytest.mark.parametrize("case", THEIRS)
def test_against_transformers(case):
    """Worst error seen: 1e-6."""
    pair = make_pair(case)
    assert worst_token(play_ours(pair.ours, pair.x), pair.truth) < LIMIT


@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.parametrize("name", NAMES)
def test_exchanged_entries_are_seen(case, name):
    pair = make_pair(case)
    wrong = exchanged(pair.ours, name)
    assert worst_token(play_ours(wrong, pair.x), pair.truth) > 100 * LIMIT
