"""Foreign notations: what each symbol becomes, what is refused and in which words."""

import pytest

from hybridlm.compose.notation import read
from hybridlm.compose.pattern import parse
from hybridlm.errors import PatternError

NEMOTRON_H_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"


def error(source, notation, defined=()) -> str:
    with pytest.raises(PatternError) as caught:
        read(source, notation, defined)
    return str(caught.value)


def sublayer(mixer):
    return {"mixer": {"type": mixer}, "mlp": "none"}


def test_megatron():
    text, blocks = read("M-M*-", "megatron")
    assert text == "M-MA-"
    assert blocks == {"M": sublayer("mamba2"), "A": sublayer("attention")}


def test_megatron_and_our_language_differ():
    assert len(parse("M-M-A").places()) == len(parse(read("M-M-*", "megatron")[0]).places()) == 5
    with pytest.raises(PatternError, match="notation: megatron"):
        parse("M-M*-")


def test_megatron_other_symbols():
    text, blocks = read("MG+E", "megatron")
    assert text == "MGLE"
    assert blocks["G"] == sublayer("gated_deltanet")
    assert blocks["L"] == sublayer("mla")
    assert blocks["E"] == {"mixer": "none", "mlp": {"type": "moe"}}


def test_megatron_of_a_real_model_keeps_every_layer():
    text, _ = read(NEMOTRON_H_8B, "megatron")
    assert "".join(place.name for place in parse(text).places()) == NEMOTRON_H_8B.replace("*", "A")
    assert len(text) < len(NEMOTRON_H_8B)


@pytest.mark.parametrize(
    ("source", "caret", "words"),
    [
        ("ME*E|M", 4, "pipeline"),
        ("M/M", 1, "multi-token"),
        ("MD", 1, "DeepSeek sparse attention"),
        ("MX", 1, "no symbol of notation megatron"),
        ("mM", 0, "Did you mean 'M'?"),
        ("M3", 1, "no symbol"),
        ("M−", 1, "MINUS SIGN"),
    ],
)
def test_megatron_errors_point_at_the_symbol(source, caret, words):
    quoted, pointer = error(source, "megatron").split("\n")
    assert quoted == f"pattern: {source}"
    assert pointer.index("^") == len("pattern: ") + caret
    assert words in pointer


def test_definitions_of_the_spec_replace_implied_ones():
    assert read("M-M*-", "megatron", ["M"])[1] == {"A": sublayer("attention")}
    text, blocks = read(["linear_attention", "attention"], "layer_types", ["linear_attention"])
    assert text == "[linear_attention][attention]"
    assert blocks == {"attention": {"mixer": {"type": "attention"}}}


@pytest.mark.parametrize(
    "source", [["sliding_attention"] * 5 + ["full_attention"], "sliding_attention, " * 5 + "full_attention"]
)
def test_layer_types(source):
    text, blocks = read(source, "layer_types")
    assert text == "[sliding_attention]5[full_attention]"
    assert blocks == {
        "sliding_attention": {"mixer": {"type": "sliding_window"}},
        "full_attention": {"mixer": {"type": "attention"}},
    }


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (["full_attention", "sliding_atention"], "pattern[1]: unknown layer type 'sliding_atention'"),
        (["sliding_atention"], "Did you mean 'sliding_attention'?"),
        (["linear_attention"], "say which in blocks"),
        (["mamba", "mlp"], "pattern[1]: 'mlp' is a layer of one sublayer"),
        (["moe"], "notation: megatron"),
        ([3], "pattern[0]: a layer type is text, got 3"),
        ([["mamba"]], "a layer type is text"),
        (3, "is a list of layer types, got int"),
        ([], "empty"),
        ("", "unknown layer type ''"),
        (["mamba"] * 4097, "4,097 layers; at most 4,096"),
    ],
)
def test_layer_types_errors(source, words):
    assert words in error(source, "layer_types")


def test_a_name_of_the_spec_that_is_no_block_name_is_refused():
    assert "a name in brackets" in error(["bad name!"], "layer_types", ["bad name!"])


def test_attn_layer_idx():
    text, blocks = read({"n_layer": 8, "attn_layer_idx": [7, 3]}, "attn_layer_idx")
    assert text == "(m3A)2"
    assert blocks == {"m": sublayer("mamba"), "A": sublayer("attention")}


def test_attn_layer_idx_of_mamba2_without_attention():
    source = {"n_layer": 24, "attn_layer_idx": [], "ssm_cfg": {"layer": "Mamba2"}}
    assert read(source, "attn_layer_idx") == ("M24", {"M": sublayer("mamba2")})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("3", "is a mapping such as {n_layer: 24, attn_layer_idx: [3, 11]}, got str"),
        (
            {"n_layers": 4},
            "pattern.n_layers: unknown key; allowed: n_layer, attn_layer_idx, ssm_cfg. Did you mean 'n_layer'?",
        ),
        ({"n_layer": 4}, "pattern.attn_layer_idx: expected a list"),
        ({"attn_layer_idx": []}, "pattern.n_layer: expected a whole number from 1 to 4096, got None"),
        ({"n_layer": True, "attn_layer_idx": []}, "got True"),
        ({"n_layer": 4.0, "attn_layer_idx": []}, "got 4.0"),
        ({"n_layer": 10**9, "attn_layer_idx": []}, "got 1000000000"),
        (
            {"n_layer": 8, "attn_layer_idx": [3, 8]},
            "pattern.attn_layer_idx[1]: expected a whole number from 0 to 7, got 8",
        ),
        ({"n_layer": 8, "attn_layer_idx": [-1]}, "got -1"),
        ({"n_layer": 8, "attn_layer_idx": [3, 3]}, "pattern.attn_layer_idx[1]: layer 3 stands here twice"),
        ({"n_layer": 2, "attn_layer_idx": [], "ssm_cfg": {"layer": "Mamba3"}}, "Did you mean 'Mamba2'?"),
        ({"n_layer": 2, "attn_layer_idx": [], "ssm_cfg": {"layer": ["Mamba2"]}}, "pattern.ssm_cfg.layer: unknown"),
        ({"n_layer": 2, "attn_layer_idx": [], "ssm_cfg": {"d_state": 3}}, "belong into blocks"),
        ({"n_layer": 2, "attn_layer_idx": [], "ssm_cfg": 3}, "pattern.ssm_cfg"),
    ],
)
def test_attn_layer_idx_errors(source, words):
    assert words in error(source, "attn_layer_idx")


@pytest.mark.parametrize("notation", ["megatro", "", None, 3, ["megatron"]])
def test_unknown_notation_lists_the_known(notation):
    assert "allowed: megatron, layer_types, attn_layer_idx." in error("M", notation)
    assert error("M", "megatro").endswith("Did you mean 'megatron'?")


@pytest.mark.parametrize("source", ["", " \n", ["M"], {"M": 1}, None])
def test_megatron_wants_text(source):
    assert error(source, "megatron").startswith("pattern: ")
