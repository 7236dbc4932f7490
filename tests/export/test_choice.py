"""Which family a model is exported as, and what is said of those that do not hold it."""

from __future__ import annotations

import pytest

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError
from hybridlm.export.choice import choose, exportable
from hybridlm.export.family import FAMILIES, SOURCES

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 5, "head_dim": 8}},
    "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2}},
}
LLAMA = {"pattern": "A2", "d_model": 32, "vocab_size": 97, "blocks": BLOCKS}
GRANITE = {**LLAMA, "pattern": "MA"}
S4 = {"pattern": "SA", "d_model": 32, "vocab_size": 97}


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (LLAMA, "llama"),
        ({**LLAMA, "pattern": "W2"}, "mistral"),
        ({**LLAMA, "pattern": "AW"}, "granite_swa"),
        ({**LLAMA, "pattern": "A{rope: false}2"}, "granite_swa"),
        (GRANITE, "granite_hybrid"),
        ({**LLAMA, "pattern": "M3", "mlp": "none"}, "mamba2"),
        ({**LLAMA, "pattern": "m3", "mlp": "none"}, "mamba"),
    ],
)
def test_auto_takes_the_first_that_is_exact(spec, name):
    blocks = {
        **BLOCKS,
        "W": {"mixer": {"type": "sliding_window", "heads": 4, "kv_heads": 2, "window": 5}},
        "m": {"mixer": "mamba"},
    }
    assert choose(plan(hl.ModelSpec.from_dict({**spec, "blocks": blocks})), "auto").name == name


def test_what_fits_instead_is_said():
    with pytest.raises(ExportError, match=r"llama: .*\n.*M: mixer mamba2(.|\n)*It fits: granite_hybrid"):
        choose(plan(hl.ModelSpec.from_dict(GRANITE)), "llama")


def test_where_nothing_fits_every_reason_and_the_nearest_are_said():
    with pytest.raises(ExportError) as caught:
        choose(plan(hl.ModelSpec.from_dict(S4)), "auto")
    said = str(caught.value)
    assert all(f"\n  {name}" in said for name in FAMILIES)
    assert "Nearest is" in said
    assert "--to remote-code" in said


def test_every_misfit_is_said_at_once():
    blocks = {"A": {"mixer": {"type": "attention", "heads": 3, "head_dim": 8, "rope": False, "qk_norm": True}}}
    with pytest.raises(ExportError) as caught:
        choose(plan(hl.ModelSpec(pattern="A", d_model=32, vocab_size=97, blocks=blocks)), "llama")
    assert all(word in str(caught.value) for word in ("rope: false", "qk_norm: true", "heads: it has to divide"))


@pytest.mark.parametrize(("word", "near"), [("lama", "Did you mean 'llama'"), (SOURCES[0], "read, and never written")])
def test_words_that_are_no_family(word, near):
    with pytest.raises(ExportError, match=near):
        choose(plan(hl.ModelSpec.from_dict(LLAMA)), word)


def test_exportable_has_a_reason_for_every_other_family():
    found = exportable(plan(hl.ModelSpec.from_dict(GRANITE)))
    assert found["as"][0] == "granite_hybrid"
    assert {*found["as"], *found["misfits"]} == set(FAMILIES)
    assert all(found["misfits"].values())
