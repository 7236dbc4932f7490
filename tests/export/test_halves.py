"""A stack in halves: the same model however it is spelled, and what of it others cannot say."""

from __future__ import annotations

from typing import Any

import pytest

import hybridlm as hl
from hybridlm.compose.plan import Stack, plan
from hybridlm.export.halves import (
    KNOWN,
    WITHOUT_EFFECT,
    allowed,
    halves,
    layers,
    mixed,
    mixer_halves,
    mlp_halves,
    needed,
    of_type,
    outer,
    pairs,
    plain,
    unpaired,
)
from hybridlm.registry import mixers, mlps

BLOCKS = {
    "A": {"mixer": {"type": "attention", "heads": 4}},
    "M": {"mixer": {"type": "mamba2", "d_state": 5, "head_dim": 8}},
    "B": {"mixer": {"type": "attention", "heads": 4}, "mlp": "none"},
    "N": {"mixer": {"type": "mamba2", "d_state": 5, "head_dim": 8}, "mlp": "none"},
}


def stack_of(pattern: str, blocks: dict[str, Any] = BLOCKS, **rest: Any) -> Stack:
    return plan(hl.ModelSpec(pattern=pattern, d_model=32, vocab_size=97, blocks=blocks, **rest))


def kinds(stack: Stack) -> list[str]:
    return [half.type for half in halves(stack)]


# ----------------------------------------------------------------------------------------------------- spellings of one
@pytest.mark.parametrize(
    "pattern", ["MA", "N-B-", "N - A", "M1A1", "(M)(B-)", "M A{mlp: swiglu}", "[M][A]", "N{mlp: swiglu} B{mlp: swiglu}"]
)
def test_spellings_of_one_model(pattern):
    assert kinds(stack_of(pattern)) == ["mamba2", "swiglu", "attention", "swiglu"]
    assert unpaired(stack_of(pattern)) == []
    assert [(mixer.type, mlp.type) for mixer, mlp in pairs(stack_of(pattern))] == [
        ("mamba2", "swiglu"), ("attention", "swiglu"),
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["MA", "B-N-", "<A|M>N--", "A@x B A@x", "-A", "<B|N>", "(M3A)2"])
def test_weights_are_where_a_half_says(pattern):
    """Each prefix and each norm is one of the model, and together they are all that its blocks hold."""
    stack = stack_of(pattern)
    names = set(hl.build(stack.spec, device="meta").state_dict())
    shared = any(layer.label for layer in stack.layers)
    found = halves(stack)
    if not shared:
        held = {name for name in names if name.startswith("blocks.")}
        reached = {name for name in held for half in found if name.startswith((half.prefix, half.norm))}
        assert reached == held
    assert len({half.prefix for half in found}) == len(found)
    assert [half.mixes for half in found] == [half.type in mixers for half in found]
    assert all(half.mixes or half.type in mlps for half in found)
    assert (mixer_halves(stack), mlp_halves(stack)) == (
        [half for half in found if half.mixes], [half for half in found if not half.mixes],
    )  # fmt: skip


def test_side_by_side_there_are_halves_with_one_norm():
    first, second, mlp = halves(stack_of("<A|M>"))
    assert (first.norm, first.index, first.place) == (second.norm, second.index, second.place)
    assert (first.prefix, second.prefix) == ("blocks.0.mixer.mixers.0.", "blocks.0.mixer.mixers.1.")
    assert layers(stack_of("<A|M>")) == [([first, second], mlp)]
    assert of_type([first, second, mlp], "mamba2") == [second]
    assert of_type([first, second, mlp], "s4") == []


# ------------------------------------------------------------------------------------------------------------- unpaired
@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("-", ["-: an MLP without"]),
        ("--", ["-: an MLP without"]),
        ("-A", ["-: an MLP without"]),
        ("A-", ["-: an MLP without"]),
        ("B", ["B: no MLP follows"]),
        ("BB-", ["B: no MLP follows"]),
        ("MB", ["B: no MLP follows"]),
        ("B-N", ["N: no MLP follows"]),
        ("BA-", ["B: no MLP follows", "-: an MLP without"]),
        ("B--", ["-: an MLP without"]),
        ("<B|N>", ["<B|N>: no MLP follows"]),
        ("<B|N>-", []),
        ("<A|M>", []),
        ("<B|N>B-", ["<B|N>: no MLP follows"]),
    ],
)
def test_where_a_half_is_missing(pattern, said):
    found = unpaired(stack_of(pattern))
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


# --------------------------------------------------------------------------------------------------------- what differs
def test_settings_that_differ_are_all_said():
    stack = stack_of("A A{heads: 2} A{heads: 8, rope: true} M M{d_state: 6} M{chunk: 32}")
    said = mixed(mixer_halves(stack))
    assert any(one.startswith("attention.heads: 4, 2, 8; every layer has the same one there") for one in said)
    assert any(one.startswith("mamba2.d_state: 5, 6; ") for one in said)
    assert any(one.startswith("attention.rope: ") for one in said)
    assert not any("chunk" in one for one in said)
    assert said == sorted(said)
    assert not any(one.startswith("attention.heads") for one in mixed(mixer_halves(stack), but=["heads"]))


@pytest.mark.parametrize("pattern", ["AAMM", "A", "A A{mlp: none} M{chunk: 32}", "-"])
def test_what_is_alike_goes_unsaid(pattern):
    assert mixed(mixer_halves(stack_of(pattern))) == []


def test_halves_of_two_types_are_not_compared():
    blocks = {**BLOCKS, "W": {"mixer": {"type": "sliding_window", "heads": 2, "window": 5}}}
    assert mixed(mixer_halves(stack_of("AW", blocks))) == []


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_is_said_to_be_without_effect_is_a_setting(name):
    """Of some mixer or MLP: a name that none has would be a mistake here."""
    fields = {
        field for kind in (mixers, mlps) for one in kind.names() for field in kind.get(one).Config.__annotations__
    }
    assert name in fields


# ------------------------------------------------------------------------------------------------- what nobody else has
@pytest.mark.parametrize(
    ("pattern", "rest", "word"),
    [
        ("A@x M A@x", {}, "weights that are shared between depths"),
        ("A@x", {}, "weights that are shared between depths"),
        ("<A|M>", {}, "2 mixers side by side; at most 1 there"),
        ("A", {"norms": "sandwich"}, "norms"),
        ("A@x{low_rank: 4} A@x", {}, "low_rank"),
    ],
)
def test_what_no_family_has(pattern, rest, word):
    said = plain(stack_of(pattern, **rest))
    assert any(word in one for one in said)
    assert len(said) == len(set(said))


def test_plain_stacks_are_plain():
    assert plain(stack_of("MA<A|M>"), mixers=2) == []
    assert plain(stack_of("(M3A)2-")) == []


@pytest.mark.parametrize(
    ("rest", "word"),
    [
        ({"norm": "layernorm"}, "norm: layernorm"),
        ({"residual_in_fp32": True}, "residual_in_fp32: true"),
        ({"head": {"type": "classify", "classes": 3, "pool": "mean"}}, "a language model is needed"),
    ],
)
def test_ends_that_no_family_has(rest, word):
    said = outer(stack_of("A", **rest))
    assert len(said) == 1
    assert word in said[0]
    assert outer(stack_of("A")) == []
    assert (outer(stack_of("A", **rest), fp32=True) == []) == ("residual_in_fp32" in rest)


def test_layers_of_another_type_are_named_once():
    said = allowed(mixer_halves(stack_of("AAMAM")), ["attention"], "mixer")
    assert said == [f"M: mixer mamba2{KNOWN}attention"]
    assert allowed(mlp_halves(stack_of("AA")), [], "MLP") == [f"A: MLP swiglu{KNOWN}none"]
    assert allowed([], [], "MLP") == []


def test_a_test_that_fails_is_said_with_its_place():
    found = mixer_halves(stack_of("A A{heads: 2} A{heads: 2} [B]"))
    assert needed(found, lambda config: config.heads == 4, "heads: 4 there") == [
        "A{heads: 2}: attention.heads: 4 there"
    ]
    assert needed([], lambda config: False, "never") == []
