"""mamba and mamba2 against the mixers of transformers: same parameter names, same weights, same outputs and steps.

Every parameter is random first, biases and norms too, and exchanging entries of any one of them must be seen. Falcon-H1
has an inner width that is no multiple of d_model, and no norm after the gate. Worst error seen: 7e-7.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Config, FalconH1Mixer, compute_mup_vector
from transformers.models.jamba.modeling_jamba import JambaConfig, JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

from hybridlm.layers.mamba import Mamba
from hybridlm.layers.mamba2 import Mamba2
from tests.layers.common import exchanged, in_pieces, worst_token

LIMIT = 1e-5
D_MODEL, EPS, STEPS = 24, 1e-3, 4  # a large eps, so that a wrong one shows


def their_mamba():
    config = MambaConfig(
        hidden_size=D_MODEL, state_size=5, conv_kernel=3, expand=2, time_step_rank=3, num_hidden_layers=1
    )
    return MambaMixer(config, layer_idx=0), config


def their_jamba():
    sizes = {"mamba_d_state": 5, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_dt_rank": 3}
    config = JambaConfig(
        hidden_size=D_MODEL, num_hidden_layers=1, attn_layer_period=2, attn_layer_offset=1, rms_norm_eps=EPS, **sizes
    )
    return JambaMambaMixer(config, layer_idx=0), config


def their_mamba2(n_groups):
    sizes = {"num_heads": 6, "head_dim": 8, "state_size": 5, "conv_kernel": 3, "expand": 2, "chunk_size": 8}
    config = Mamba2Config(hidden_size=D_MODEL, n_groups=n_groups, layer_norm_epsilon=EPS, num_hidden_layers=1, **sizes)
    return Mamba2Mixer(config, layer_idx=0), config


def their_falcon():
    sizes = {"mamba_n_heads": 6, "mamba_d_head": 6, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_chunk_size": 8}
    config = FalconH1Config(
        hidden_size=D_MODEL, mamba_d_ssm=36, mamba_n_groups=2, mamba_rms_norm=False, num_hidden_layers=1, **sizes
    )
    mixer = FalconH1Mixer(config, layer_idx=0)
    mixer.mup_vector = compute_mup_vector(config)  # its model sets it: ones
    return mixer, config


SELECTIVE = {"d_state": 5, "d_conv": 3, "dt_rank": 3}
MATRIX = {"d_state": 5, "d_conv": 3, "head_dim": 8, "chunk": 16}
UNNORMED = MATRIX | {"expand": 1.5, "head_dim": 6, "n_groups": 2, "gated_norm": False}
CASES = {
    "mamba": (their_mamba, lambda: Mamba(Mamba.Config(**SELECTIVE), D_MODEL, eps=EPS)),
    "jamba": (their_jamba, lambda: Mamba(Mamba.Config(**SELECTIVE, bcdt_norm=True), D_MODEL, eps=EPS)),
    "mamba2, 1 group": (lambda: their_mamba2(1), lambda: Mamba2(Mamba2.Config(**MATRIX), D_MODEL, eps=EPS)),
    "mamba2, 2 groups": (
        lambda: their_mamba2(2),
        lambda: Mamba2(Mamba2.Config(**MATRIX, n_groups=2), D_MODEL, eps=EPS),
    ),
    "falcon_h1": (
        their_falcon,
        lambda: Mamba2(Mamba2.Config(**UNNORMED), D_MODEL, eps=EPS),
    ),
}
NAMES = {case: [name for name, _ in ours().named_parameters()] for case, (_, ours) in CASES.items()}


@pytest.fixture(params=CASES)
def pair(request):
    """Their mixer with random parameters, ours with the same, and what theirs makes of one input."""
    theirs, ours = CASES[request.param]
    return make_pair(theirs, ours)


def make_pair(theirs, ours):
    theirs, config = theirs()
    ours = ours()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(random_values(name, parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 21 + STEPS, D_MODEL)
    return SimpleNamespace(theirs=theirs.eval(), ours=ours, x=x, truth=play_theirs(theirs.eval(), config, x))


def random_values(name, parameter):
    """Of a size that keeps every part audible: decays between 0.1 and 4, steps about 0.5, norms about 1."""
    noise = torch.randn(parameter.shape)
    if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
        return noise
    if parameter.ndim == 1:
        return 1 + 0.5 * noise
    return noise * parameter.shape[-1] ** -0.5


@torch.no_grad()
def play_theirs(mixer, config, x):
    """Prefill, then single tokens with their cache."""
    cache = DynamicCache(config=config)
    pieces = [mixer(part, cache_params=cache) for part in x.split([x.shape[1] - STEPS, *[1] * STEPS], dim=1)]
    return torch.cat(pieces, dim=1), mixer(x)


@torch.no_grad()
def play_ours(mixer, x):
    """The same with our state."""
    return in_pieces(mixer, x, [x.shape[1] - STEPS, *[1] * STEPS]), mixer(x)[0]


def test_same_outputs_and_steps(pair):
    assert worst_token(play_ours(pair.ours, pair.x), pair.truth) < LIMIT


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, names in NAMES.items() for name in names])
def test_exchanged_entries_are_seen(case, name):
    pair = make_pair(*CASES[case])
    wrong = exchanged(pair.ours, name)
    assert worst_token(play_ours(wrong, pair.x), pair.truth) > 100 * LIMIT
