"""Random legal models, for hypothesis: every form of the pattern language over every registered mixer.

from hypothesis import given
from hybridlm.testing import check_model, require
from hybridlm.testing.patterns import specs

@given(specs())
def test_model(spec):
    require(check_model(spec))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from hybridlm.compose.part import Part
from hybridlm.registry import mixers, mlps
from hybridlm.testing.subject import configured, small

OVERRIDES = {"window": [2, 3, 9], "rope": ["true", "false"], "chunk": [4, 16]}
"""Settings that change no shape of a weight, with values to try, for mixers whose Config has them."""

WIDE = "wide-"
"""Before the name of a block whose mixer reads the embeddings too."""


def specs(names: Sequence[str] | None = None, d_model: int = 32) -> st.SearchStrategy[dict[str, Any]]:
    """Keywords of `hl.build`: a pattern of up to about 8 layers over the named mixers (all), and settings around it."""
    return st.builds(
        dict,
        pattern=patterns(names),
        blocks=st.just(alphabet(names, d_model) | wide_alphabet(names, d_model)),
        d_model=st.just(d_model),
        vocab_size=st.just(40),
        mlp=st.sampled_from([{"type": name, "width": 48} for name in mlps.names()] + ["none"]),
        norms=st.sampled_from(["pre", "pre", "sandwich"]),
        combine=st.sampled_from(["sum", "norm_mean"]),
        tie_embeddings=st.booleans(),
        norm=st.sampled_from(["rmsnorm", "layernorm"]),
        residual_in_fp32=st.booleans(),
    ).filter(legal)


def legal(spec: dict[str, Any]) -> bool:
    """'-' is an MLP alone, and needs one."""
    return not (spec["mlp"] == "none" and any(text.startswith("-") for text in spec["pattern"].split()))


def alphabet(names: Sequence[str] | None = None, d_model: int = 32) -> dict[str, Any]:
    """A block for every mixer, named as it is, with sizes that are small; its MLP is that of the model."""
    names = names or mixers.names()
    return {name: {"mixer": {"type": name, **small(mixers.get(name), d_model)}} for name in names}


def wide_alphabet(names: Sequence[str] | None = None, d_model: int = 32) -> dict[str, Any]:
    """The same blocks, each with a mixer that reads the embeddings too."""
    wide = alphabet(names, 2 * d_model)
    return {f"{WIDE}{name}": {**block, "input": "concat_embeddings"} for name, block in wide.items()}


def patterns(names: Sequence[str] | None = None) -> st.SearchStrategy[str]:
    """Text of the pattern language over both alphabets, with at least one mixer: counts, groups, side by side, shared
    weights with and without corrections, overrides, results for the next mixer."""
    plain = list(names or mixers.names())
    names = plain * 2 + [f"{WIDE}{name}" for name in plain]
    members = st.sampled_from(names).flatmap(overridden)
    pair = st.one_of(side_by_side(plain), side_by_side([f"{WIDE}{name}" for name in plain]))
    shared = st.sampled_from(names).flatmap(shares)
    counted = st.tuples(members, st.sampled_from(["", "", "2"])).map("".join)
    aside = st.tuples(st.sampled_from([f"[{name}]" for name in names]), counted).map("{output: next_mixer} ".join)
    alone = st.one_of(counted, counted, pair, shared, aside)
    group = st.tuples(alone, members, st.sampled_from(["", "2"])).map(lambda g: f"({g[0]} {g[1]}){g[2]}")
    mlp = st.sampled_from(["-", "-{norms: sandwich}"])
    items = st.lists(st.one_of(alone, group, mlp), min_size=1, max_size=3)
    return items.filter(lambda chosen: any(text[0] != "-" for text in chosen)).map(" ".join)


def overridden(name: str, more: Sequence[str] = ("norms: sandwich",)) -> st.SearchStrategy[str]:
    """A block, sometimes with a setting of its own."""
    choices = [f"[{name}]{{{choice}}}" for choice in [*settings(name), *more]]
    return st.sampled_from([f"[{name}]"] * 3 + choices)


def settings(name: str) -> list[str]:
    """What an override may say of its mixer."""
    fields = mixers.get(name.removeprefix(WIDE)).Config.__dataclass_fields__
    return [f"{key}: {value}" for key, values in OVERRIDES.items() if key in fields for value in values]


def side_by_side(names: Sequence[str]) -> st.SearchStrategy[str]:
    """Two or three mixers on one norm. What a block does besides, members must agree on."""
    member = st.sampled_from(names).flatmap(lambda name: overridden(name, more=()))
    return st.lists(member, min_size=2, max_size=3).map(lambda parts: f"<{'|'.join(parts)}>")


def shares(name: str) -> st.SearchStrategy[str]:
    """Two places with the same weights, perhaps with other settings or corrections, the first beside the stream."""
    label = (
        name.lower().replace("-", "_").translate({ord(f"{i}"): f"_{letter}" for i, letter in enumerate("abcdefghij")})
    )
    ranks = ["low_rank: 2", "low_rank: {mixer: 3}"] if corrects(name) else []
    places = st.sampled_from(["", *settings(name), *ranks, *ranks])
    norms, output = st.sampled_from(["", "", "norms: sandwich"]), st.sampled_from(["", "output: next_mixer"])
    return st.builds(
        lambda first, second, norms, output: " ".join(
            f"[{name}]@{label}_twice{{{', '.join(filter(None, said))}}}"
            for said in ((first, norms, output), (second, norms))
        ),
        *(places, places, norms, output),
    )


def corrects(name: str) -> bool:
    """Whether a mixer has a linear layer that reads, to which a place can add a correction."""
    mixer = mixers.get(name.removeprefix(WIDE))
    config = configured(mixer, None, 32)
    return bool(Part(name.removeprefix(WIDE), config, mixers, 32, 32).readers())
