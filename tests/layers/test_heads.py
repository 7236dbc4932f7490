"""Heads of which a part is rotated. What all heads do is in tests/test_conformance.py."""

import pytest
import torch

import hybridlm as hl
from hybridlm.errors import SpecError
from hybridlm.layers.attention import Attention, HeadsConfig
from hybridlm.ops.rotary import rotary

SIZES = {"heads": 2, "head_dim": 6, "rope": True, "rope_theta": 50.0}


def test_only_the_first_channels_turn():
    mixer = Attention(HeadsConfig(**SIZES, rope_dim=4), 12)
    x, positions = torch.randn(2, 5, 2, 6), torch.arange(3, 8).expand(2, 5)
    turned = mixer.turned(x, positions)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], rotary(x[..., :4], positions, 50.0))  # as if a head were no wider


def test_all_channels_go_unsaid():
    assert HeadsConfig(**SIZES, rope_dim=6).resolve(12) == HeadsConfig(**SIZES).resolve(12)
    assert HeadsConfig(heads=2, head_dim=7, rope_dim=4).resolve(12).rope_dim == 4  # odd, and turned all the same


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_dim": 3}, "rope_dim: 3 is odd"),
        ({"rope_dim": 8}, "rope_dim: 8 is out of range"),
        ({"rope_dim": 0}, "rope_dim: 0 is out of range"),
        ({"rope_dim": 4, "rope": False}, "rope_dim: 4, but rope: false"),
        ({"head_dim": 7}, "head_dim: 7 is odd"),
    ],
)
def test_what_cannot_turn(fields, said):
    with pytest.raises(SpecError, match=said):
        HeadsConfig(**{**SIZES, **fields}).resolve(12)


def test_states_of_before_still_fit():
    """A model that does not say it means what it meant before there was anything to say."""
    spec = {"d_model": 32, "vocab_size": 16, "pattern": "AW"}
    plain = hl.ModelSpec.from_dict(spec | {"blocks": {letter: block() for letter, block in BLOCKS.items()}})
    said = hl.ModelSpec.from_dict(spec | {"blocks": {letter: block(rope_dim=None) for letter, block in BLOCKS.items()}})
    other = hl.ModelSpec.from_dict(spec | {"blocks": {letter: block(rope_dim=4) for letter, block in BLOCKS.items()}})
    assert plain.fingerprint == said.fingerprint != other.fingerprint


BLOCKS = {
    "A": lambda **more: {"mixer": {"type": "attention", "heads": 2, **more}},
    "W": lambda **more: {"mixer": {"type": "sliding_window", "heads": 2, **more}},
}
