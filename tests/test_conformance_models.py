"""Whole models against the laws of state: random legal patterns over every registered mixer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import hybridlm as hl
from hybridlm.testing import LAWS, Whole, check_model, require
from hybridlm.testing.check import numbers
from hybridlm.testing.patterns import alphabet, specs, wide_alphabet

FIXED = {
    "hybrid": {"pattern": "[mamba2] [attention] [mamba] - [s4]"},
    "side by side, shared": {
        "pattern": "<[mamba2]|[attention]> [sliding_window]{window: 3} [s4]@x [s4]@x",
        "combine": "norm_mean",
        "norm": "layernorm",
        "tie_embeddings": True,
    },
    "options": {
        "pattern": "[mamba2] [wide-attention]@x{output: next_mixer, low_rank: 2} [mamba]{norms: sandwich} - "
        "[wide-attention]@x{output: next_mixer, low_rank: {mlp: 3}} <[wide-s4]|[wide-mamba2]>",
        "mlp": {"type": "geglu", "width": 24},
    },
    "rotary": {"pattern": "[attention]@a [attention]@a{rope: false} [sliding_window]", "mlp": "none"},
}

GROUPS = [["C1", "C4"], ["C3", "C7"], ["C5"], ["C6"], ["C8", "C9", "C13"], ["C10", "C11"], ["C12", "C17", "C18", "C24"]]


def model(spec: dict, **options) -> Whole:
    return Whole({"blocks": alphabet() | wide_alphabet(), "d_model": 32, "vocab_size": 40} | spec, **options)


def exact(spec: dict, dtype: torch.dtype = torch.float32) -> torch.dtype:
    """float64 where a norm stands on what a mixer gives, without the stream: the quieter that is, the more its rounding
    grows, in any implementation. The fixed patterns are held to float32's limits too."""
    return torch.float64 if any(word in str(spec) for word in ("sandwich", "next_mixer")) else dtype


@pytest.fixture(scope="module")
def fixed() -> dict[str, Whole]:
    return {name: model(spec) for name, spec in FIXED.items()}


@pytest.mark.parametrize("number", numbers())
@pytest.mark.parametrize("name", FIXED)
def test_fixed_pattern(fixed, name, number):
    require(LAWS[number].check(fixed[name]))


@settings(max_examples=20)
@given(spec=specs())
def test_cached_generation_of_random_patterns(spec):
    """Splits at every token, and generation from a state against reading everything anew."""
    require(LAWS["C2"].check(model(spec, tokens=16, dtype=exact(spec))))


@settings(max_examples=14)
@given(spec=specs(), group=st.sampled_from(GROUPS))
def test_random_patterns(spec, group):
    subject = model(spec, dtype=exact(spec))
    require([result for number in group for result in LAWS[number].check(subject)])


@pytest.mark.deep
@settings(max_examples=100)
@given(spec=specs(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_random_patterns_by_all_laws(spec, dtype):
    require(check_model({**spec}, dtype=exact(spec, dtype)))


def test_every_mixer_is_drawn():
    assert set(alphabet()) == set(hl.mixers.names())


@pytest.mark.parametrize("form", ["wide-", "next_mixer", "low_rank", "sandwich", "norm_mean", "|", "@", "-{"])
def test_every_form_is_drawn(form):
    drawn = settings(database=None, phases=[Phase.generate])  # any will do, not only the smallest
    find(specs(), lambda spec: form in spec["pattern"] + spec["combine"], settings=drawn)


def test_the_model_is_left_alone():
    built = hl.build(**model(FIXED["hybrid"]).spec.to_dict())
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    check_model(built, laws=["C2", "C22"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
