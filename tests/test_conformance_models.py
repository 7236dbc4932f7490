"""Whole models against the laws of state: random legal patterns over every registered mixer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridlm as hl
from hybridlm.testing import LAWS, Whole, check_model, require
from hybridlm.testing.check import numbers
from hybridlm.testing.patterns import alphabet, specs

FIXED = {
    "hybrid": {"pattern": "[mamba2] [attention] [mamba] - [s4]"},
    "side by side, shared": {
        "pattern": "<[mamba2]|[attention]> [sliding_window]{window: 3} [s4]@x [s4]@x",
        "combine": "norm_mean",
        "norm": "layernorm",
        "tie_embeddings": True,
    },
    "rotary": {"pattern": "[attention]@a [attention]@a{rope: false} [sliding_window]", "mlp": "none"},
}

GROUPS = [["C1", "C4"], ["C3", "C7"], ["C5"], ["C6"], ["C8", "C9", "C13"], ["C10", "C11"], ["C12", "C17", "C18", "C24"]]


def model(spec: dict, **options) -> Whole:
    return Whole({"blocks": alphabet(), "d_model": 32, "vocab_size": 40} | spec, **options)


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
    require(LAWS["C2"].check(model(spec, tokens=16)))


@settings(max_examples=14)
@given(spec=specs(), group=st.sampled_from(GROUPS))
def test_random_patterns(spec, group):
    subject = model(spec)
    require([result for number in group for result in LAWS[number].check(subject)])


@pytest.mark.deep
@settings(max_examples=100)
@given(spec=specs(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_random_patterns_by_all_laws(spec, dtype):
    require(check_model({**spec}, dtype=dtype))


def test_every_mixer_is_drawn():
    assert set(alphabet()) == set(hl.mixers.names())


def test_the_model_is_left_alone():
    built = hl.build(**model(FIXED["hybrid"]).spec.to_dict())
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    check_model(built, laws=["C2", "C22"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
