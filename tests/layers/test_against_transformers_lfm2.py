"""short_conv against LFM2's in transformers: same names, same weights, same outputs, steps and inputs remembered.

Every parameter is random first. The worst token seen was 3e-7 off, the limit is 1e-5.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.models.lfm2.modeling_lfm2 import Lfm2Config, Lfm2ShortConv

from hybridlm.layers.short_conv_mixer import ShortConvMixer, ShortConvMixerConfig
from tests.layers.common import exchanged, in_pieces, worst_token

LIMIT = 1e-5
D_MODEL, STEPS = 24, 5
CASES = {"as shipped": {"d_conv": 3}, "biased": {"d_conv": 4, "bias": True}}


def ours(case):
    return ShortConvMixer(ShortConvMixerConfig(**CASES[case]), D_MODEL)


NAMES = [(case, name) for case in CASES for name, _ in ours(case).named_parameters()]


def make_pair(case):
    """Their mixer with random parameters, ours with the same, and what theirs makes of one input."""
    fields = CASES[case]
    config = Lfm2Config(
        hidden_size=D_MODEL, num_hidden_layers=1, layer_types=["conv"], num_attention_heads=2, num_key_value_heads=2,
        conv_L_cache=fields["d_conv"], conv_bias=fields.get("bias", False),
    )  # fmt: skip
    theirs, mine = Lfm2ShortConv(config, 0).eval(), ours(case)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    mine.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 21 + STEPS, D_MODEL)
    return SimpleNamespace(ours=mine, x=x, truth=play_theirs(theirs, config, x))


@torch.no_grad()
def play_theirs(mixer, config, x):
    """One call; prefill and single tokens with their cache; the inputs that it holds after the prefill."""
    cache, parts = DynamicCache(config=config), x.split([x.shape[1] - STEPS, *[1] * STEPS], dim=1)
    pieces = [mixer(parts[0], past_key_values=cache)]
    held = cache.layers[0].conv_states[0].clone()
    pieces += [mixer(part, past_key_values=cache) for part in parts[1:]]
    return torch.cat(pieces, dim=1), mixer(x), held


@torch.no_grad()
def play_ours(mixer, x):
    """The same with our state."""
    return in_pieces(mixer, x, [x.shape[1] - STEPS, *[1] * STEPS]), mixer(x)[0]


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_and_steps(case):
    pair = make_pair(case)
    assert worst_token(play_ours(pair.ours, pair.x), pair.truth[:2]) < LIMIT


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_we_go_on_from_their_prefill(case):
    """They keep k inputs, the oldest of which is never read again."""
    pair = make_pair(case)
    state, pieces = pair.ours.State(pair.truth[2][..., 1:].clone()), []
    for part in pair.x[:, -STEPS:].split([1, 2, STEPS - 3], dim=1):
        y, state = pair.ours(part, state)
        pieces.append(y)
    assert worst_token([torch.cat(pieces, dim=1)], [pair.truth[0][:, -STEPS:]]) < LIMIT


@pytest.mark.parametrize(("case", "name"), NAMES)
def test_exchanged_entries_are_seen(case, name):
    pair = make_pair(case)
    wrong = exchanged(pair.ours, name)
    assert worst_token(play_ours(wrong, pair.x), pair.truth[:2]) > 100 * LIMIT
