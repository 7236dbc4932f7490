"""linear_attention against flash-linear-attention: its naive recurrences between the same projections.

Every parameter is random first, biases and norms too, and exchanging entries of any one of them must be seen.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridlm.errors import SpecError
from hybridlm.layers.linear_attention import LinearAttention
from hybridlm.testing import Solo
from tests.layers.common import exchanged
from tests.oracles.fla_naive import naive

LIMIT = 1e-5
D_MODEL, EPS, STEPS = 24, 1e-3, 4  # a large eps, so that a wrong one shows


def gla(q, k, v, mixer, x):
    decay = mixer.decay_proj(x).unflatten(-1, (3, 4))
    return naive("gla").naive_recurrent_gla(q, k, v, F.logsigmoid(decay) / 16)[0]


def simple_gla(q, k, v, mixer, x):
    return naive("simple_gla").naive_recurrent_simple_gla(q, k, v, F.logsigmoid(mixer.decay_proj(x)) / 16)[0]


def retention(q, k, v, mixer, x):
    return naive("retention").naive_retention(*(z.transpose(1, 2) for z in (q, k, v))).transpose(1, 2)


def normalised(q, k, v, mixer, x):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return naive("linear_attn").naive_recurrent_linear_attn(q, k, v, normalize=True)[0]


SIZES = {"heads": 3, "head_dim": 5, "d_key": 4, "chunk": 8}
CASES = {
    "gla": (gla, {}),
    "simple_gla": (simple_gla, {"decay": "head"}),
    "retention": (retention, {"decay": "fixed"}),
    "linear_attn": (normalised, {"decay": "none", "feature_map": "elu1", "normalizer": True, "gate": False}),
}


def make(case):
    """Ours with random parameters, an input, and what their recurrence makes of it."""
    recurrence, fields = CASES[case]
    mixer = LinearAttention(LinearAttention.Config(**SIZES, **fields), D_MODEL, eps=EPS)
    with torch.no_grad():
        for parameter in mixer.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.5 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    x = torch.randn(2, 21 + STEPS, D_MODEL)
    return mixer, x, theirs(mixer, recurrence, x)


@torch.no_grad()
def theirs(mixer, recurrence, x):
    q, k, v = (project(x).unflatten(-1, (3, -1)) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    y = recurrence(q, k, v, mixer, x)
    if mixer.norm is not None:
        y = F.rms_norm(y, (5,), mixer.norm.weight, EPS)
    y = y.flatten(-2)
    return F.linear(y if mixer.g_proj is None else y * F.silu(mixer.g_proj(x)), mixer.o_proj.weight)


@torch.no_grad()
def ours(mixer, x):
    """Stepped decoding after a prefill in two calls, and all at once."""
    state, pieces = mixer.init_state(2, x.shape[1]), []
    for part in x.split([11, 10, *[1] * STEPS], dim=1):
        y, state = mixer(part, state)
        pieces.append(y)
    return torch.cat(pieces, dim=1), mixer(x)[0]


def error(found, true):
    """The worst token: RMS(err) / RMS(ref)."""
    scale = true.square().mean().sqrt()
    return max((one - true).square().mean(-1).sqrt().max() / scale for one in found).item()


@pytest.mark.parametrize("case", CASES)
def test_against_flash_linear_attention(case):
    """Worst error seen: 4e-6, normalised; 9e-7 otherwise."""
    mixer, x, true = make(case)
    assert error(ours(mixer, x), true) < LIMIT


NAMES = [(case, name) for case in CASES for name, _ in make(case)[0].named_parameters()]


@pytest.mark.parametrize(("case", "name"), NAMES)
def test_exchanged_entries_are_seen(case, name):
    mixer, x, true = make(case)
    wrong = exchanged(mixer, name)
    assert error(ours(wrong, x), true) > 100 * LIMIT


def test_without_decay_the_order_of_the_past_is_unknown():
    """And with one it is known: what `recurrent` says of the default."""
    x = torch.randn(2, 20, 32)
    turned = torch.cat([x[:, :19].flip(1), x[:, 19:]], dim=1)
    for decay in ("none", "fixed", "head", "channel"):
        mixer = LinearAttention(LinearAttention.Config(heads=4, decay=decay), 32)
        apart = (mixer(x)[0] - mixer(turned)[0])[:, -1].norm() / mixer(x)[0][:, -1].norm()
        assert (apart < 1e-5) == (decay == "none")


def test_rounding_does_not_decide_a_first_token():
    """Its y is (q k) v, of which a norm with a small eps would keep the sign of q k alone."""
    for _ in range(20):
        mixer, x = LinearAttention(LinearAttention.Config(heads=4, d_key=4), 32, eps=1e-9), torch.randn(20, 1, 32)
        y = mixer(x)[0].double()
        true = mixer.double()(x.double())[0]
        assert (y - true).norm() < 2e-6 * true.norm()


def test_decay_of_retnet():
    """gamma of eq. 8, head by head; the state after one token and many zeros."""
    solo = Solo("linear_attention", config={"heads": 4, "decay": "fixed"}, dtype=torch.float64)
    x = torch.zeros(1, 61, 32).double()
    x[:, 0] = torch.randn(32)
    first = solo.run(x[:, :1], solo.init_state(1))[1].layers[0].ssm
    last = solo.run(x, solo.init_state(1))[1].layers[0].ssm
    for head in range(4):
        gamma = 1 - 2 ** (-5 - head)
        torch.testing.assert_close(last[:, head], first[:, head] * gamma**60, rtol=1e-12, atol=0)


def test_normalised_outputs_are_means_of_values():
    """Values that are all 1 come out as 1, however long the past and whatever fades."""
    for decay in ("none", "channel"):
        fields = {"decay": decay, "feature_map": "elu1", "normalizer": True, "gate": False}
        mixer = LinearAttention(LinearAttention.Config(heads=1, **fields), 32)
        with torch.no_grad():
            mixer.v_proj.weight.zero_()
            mixer.v_proj.weight[:, 0] = 1
            mixer.o_proj.weight.copy_(torch.eye(32))
            x = torch.randn(2, 130, 32)
            x[..., 0] = 1
            torch.testing.assert_close(mixer(x)[0], torch.ones(2, 130, 32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"heads": 5}, r"heads: 5 does not divide d_model = 32; use 4 or 8, or give head_dim"),
        ({"heads": 0}, r"heads: 0 is out of range"),
        ({"d_key": 0}, r"d_key: 0 is out of range"),
        ({"decay": "chanel"}, r"decay: 'chanel'; it must be one of none, fixed, head, channel.*Did you mean"),
        ({"feature_map": "softmax"}, r"feature_map: 'softmax'; it must be one of identity, relu, elu1"),
        ({"normalizer": True}, r"normalizer: True divides by z\^T q, .* use elu1 or relu"),
        ({"normalizer": 1, "feature_map": "elu1"}, r"normalizer: 1; it must be true or false"),
        ({"gate": "yes"}, r"gate: 'yes'; it must be true or false"),
        ({"chunk": 1}, r"chunk: 1 is out of range"),
    ],
)
def test_bad_fields_are_named(fields, rule):
    with pytest.raises(SpecError, match=rule):
        LinearAttention.Config(**fields).resolve(32)


@pytest.mark.parametrize("d_model", [32, 33, 37, 97, 101, 192, 1000])
def test_defaults_suit_every_width(d_model):
    config = LinearAttention.Config().resolve(d_model)
    assert config.heads * config.head_dim == d_model
    assert math.isfinite(LinearAttention.cost(config, d_model).forward(10, 0).total)


@pytest.mark.parametrize("x", [-20.0, -5.0, -1e-3, 0.0, 1e-3, 3.0])
def test_elu1_keeps_its_digits(x):
    """elu(x) + 1 in float32 has lost them for negative x."""
    from hybridlm.layers.linear_attention import FEATURES

    found = FEATURES["elu1"](torch.tensor(x, dtype=torch.float32)).double().item()
    assert found == pytest.approx(x + 1 if x > 0 else math.exp(x), rel=1e-6)
