"""What is said of a model: sums that add up, positions and their reason, and a picture of any stack."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

import hybridlm as hl
from hybridlm.compose import picture
from hybridlm.compose.cost import model_cost
from hybridlm.compose.describe import describe
from hybridlm.compose.docstrings import field_docs, first_sentence
from hybridlm.errors import SpecError


def about(pattern: str, contexts=(16, 4096), *, batch=1, dtype=torch.float32, **keys) -> dict:
    spec = hl.ModelSpec(**{"d_model": 64, "vocab_size": 50, "pattern": pattern, **keys})
    return describe(model_cost(spec), contexts, batch=batch, dtype=dtype)


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    "pattern",
    [
        "(M3A)2",
        "A@x S2 A@x <m|W>{combine: norm_mean} -",
        "A@x{low_rank: 3} A@x{output: next_mixer} m{norms: sandwich}",
        "W{window: 8}3 A",
    ],
)
def test_parts_add_up(pattern):
    said = about(pattern, batch=3, dtype=torch.bfloat16)
    parameters = said["parameters"]
    around = parameters["embedding"] + parameters["head"] + parameters["final_norm"]
    assert (
        parameters["total"]
        == around + parameters["mixers"] + parameters["mlps"] + parameters["norms"] + parameters["places"]
    )
    assert parameters["total"] == around + sum(kind["parameters"] for kind in said["kinds"])
    assert sorted(i for kind in said["kinds"] for i in kind["layers"]) == list(range(said["layers"]))
    assert all(kind["count"] == len(kind["layers"]) for kind in said["kinds"])
    for context, whole in said["at"].items():
        parts = [kind["at"][context] for kind in said["kinds"]]
        parts += [said["embed_at"][context], said["head_at"][context]]
        for group in ("training_flops", "decoding_flops", "state_bytes"):
            for key, value in whole[group].items():
                assert value == pytest.approx(sum(part[group][key] for part in parts), abs=len(parts)), (group, key)
            *kinds, total = whole[group].values()
            assert total == pytest.approx(sum(kinds), abs=3)


def test_keys_are_stable():
    said = about("MA")
    assert list(said) == [
        *("format", "pattern", "d_model", "vocab_size", "layers", "tie_embeddings", "embed", "head"),
        *("dtype", "batch", "parameters", "attention", "kinds", "embed_at", "head_at", "at"),
    ]
    assert list(said["at"]) == ["16", "4096"]
    assert list(said["at"]["16"]) == ["training_flops", "decoding_flops", "state_bytes", "all_attention_bytes"]
    assert list(said["kinds"][0]) == ["block", "count", "layers", "mixers", "mlp", "shared", "parameters", "at"]


def test_options_are_said_where_they_are_used():
    blocks = {"Z": {"mixer": "attention", "input": "concat_embeddings", "output": "next_mixer", "low_rank": 2}}
    said = about("M Z@x M Z@x{low_rank: {mixer: 1}} M", blocks={"M": {"mixer": "mamba2"}, **blocks}, mlp="none")
    assert "options" not in said["kinds"][0]
    wide = {"input": "concat_embeddings", "output": "next_mixer"}
    assert said["kinds"][1]["options"] == wide | {"low_rank": {"mixer": 2, "mlp": 0}}
    corrections = [rank * 3 * (128 + 128) for rank in (2, 1)]
    assert said["parameters"]["places"] == sum(corrections) + 2 * 64 * 64
    assert said["kinds"][2]["parameters"] == corrections[1] + 64 * 64
    assert about("MA")["parameters"]["places"] == 0


def test_attention_is_counted():
    attention = about("M2 A <W|M> - A@x A@x")["attention"]
    assert (attention["layers"], attention["mixers"]) == (4, 4)
    assert attention["of_layers"] == attention["of_mixers"] == 4 / 7
    said = about("M2A")
    attention_block = next(kind for kind in said["kinds"] if kind["block"] == "A")
    assert 0 < said["parameters"]["attention"] < attention_block["parameters"]
    assert said["attention"]["of_parameters"] == said["parameters"]["attention"] / said["parameters"]["total"]


@pytest.mark.parametrize(
    ("pattern", "positions", "why"),
    [
        ("AW", "RoPE", "no mixer of the stack is recurrent"),
        ("AM", "NoPE", "mamba2"),
        ("A{rope: true}M", "RoPE", "the spec says so"),
        ("A{rope: false}", "NoPE", "the spec says so"),
        ("A{rope: true} A{rope: false} M", "RoPE and NoPE", "RoPE in A{rope: true}, NoPE in A{rope: false}"),
        ("M", None, "no mixer of the stack has positions"),
    ],
)
def test_positions_and_their_reason(pattern, positions, why):
    attention = about(pattern)["attention"]
    assert attention["positions"] == positions
    assert why in attention["why"]


def test_state_beside_the_twin():
    """A quarter of the layers keep keys; so the twin's state is four times theirs."""
    at = about("(M3A)2", contexts=[1 << 17])["at"]["131072"]
    assert at["all_attention_bytes"] == 4 * at["state_bytes"]["kv"] > at["state_bytes"]["total"]


# ------------------------------------------------------------------------------------------------------------- picture
PATTERNS = {
    "alone": "M",
    "mlps": "-2",
    "all sorts": "M2mS{d_state: 16}A@shared_one M-<m|W>A@shared_one",
    "columns": "(S3A)12",
    "options": "M A@x{output: next_mixer} M{norms: sandwich} A@x{low_rank: 2}",
    "no period": "MAMMAMMMAMMMMA" * 4,
    "many": "(M3A)200",
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_picture_of_any_stack(pattern, tmp_path):
    """A box for every mixer and MLP, no text drawn as mathematics, no warning."""
    file, cost = tmp_path / "stack.svg", model_cost(hl.ModelSpec(d_model=64, vocab_size=50, pattern=pattern))
    picture.draw(cost, file)
    boxes = (
        sum(len(layer.mixers) + bool(layer.mlp) for layer in cost.stack.layers) + 2
    )  # and the embedding and the head
    kinds = {part.type for layer in cost.stack.layers for part in (*layer.mixers, layer.mlp) if part}
    frames = 6  # of the figure, the axes and the legends
    drawn = [node for node in ET.fromstring(file.read_text()).iter() if node.get("id", "").startswith("patch_")]
    assert boxes + len(kinds) <= len(drawn) <= boxes + len(kinds) + frames


def test_png(tmp_path):
    file = tmp_path / "stack.PNG"
    picture.draw(model_cost(hl.ModelSpec(d_model=64, vocab_size=50, pattern="MA")), file, batch=2, dtype=torch.bfloat16)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_picture_is_reproducible(tmp_path):
    cost = model_cost(hl.ModelSpec(d_model=64, vocab_size=50, pattern="MA"))
    for name in ("a.svg", "b.svg"):
        picture.draw(cost, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("name", "said"), [("a.pdf", "not as .pdf"), ("a", "without suffix"), ("no/a.svg", "does not exist")]
)
def test_picture_refuses(name, said, tmp_path):
    with pytest.raises(SpecError, match=said):
        picture.suffix_of(tmp_path / name)


def test_columns_end_with_the_period():
    layout = picture.columns(["M", "M", "A"] * 20)
    assert [len(column) for column in layout] == [24, 24, 12]
    assert [len(column) for column in picture.columns(list("MMMMA") * 20)] == [20] * 5
    assert [i for column in picture.columns(["M"] * 4096) for i in column] == list(range(4096))
    assert len(picture.columns(["M"] * 4096)) <= picture.MOST_COLUMNS


# ---------------------------------------------------------------------------------------------------------- docstrings
def test_field_docs():
    docs = field_docs(
        """One.

        a, b: both,
            and more
        c_d: one: two
        Not an entry
            at all.

        Args:
            e: inner
        Raises:
            ValueError: never
            f: not an argument
        """
    )
    assert docs == {"a": "both, and more", "b": "both, and more", "c_d": "one: two", "e": "inner"}


def test_first_sentence():
    assert (
        first_sentence("silu(x G) * (x U),\n    projected back. Shazeer 2020, eq. 6.")
        == "silu(x G) * (x U), projected back"
    )
    assert first_sentence("One line") == "One line"
    assert first_sentence(None) == ""


def test_no_two_mixers_have_the_same_colour():
    """Nor the colour of one that another package may bring."""
    from hybridlm.registry import mixers

    colours = picture.colours([listing.name for listing in mixers.listing()])
    assert len({*colours, *picture._OTHERS, picture.MLP_COLOUR}) == len(colours) + len(picture._OTHERS) + 1
