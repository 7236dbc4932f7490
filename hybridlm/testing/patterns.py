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

from hybridlm.registry import mixers, mlps
from hybridlm.testing.subject import SMALL

OVERRIDES = {"window": [2, 3, 9], "rope": ["true", "false"], "chunk": [4, 16]}
"""Settings that change no shape of a weight, with values to try, for mixers whose Config has them."""


def specs(names: Sequence[str] | None = None, d_model: int = 32) -> st.SearchStrategy[dict[str, Any]]:
    """Keywords of `hl.build`: a pattern of up to about 8 layers over the named mixers (all), and settings around it."""
    return st.builds(
        dict,
        pattern=patterns(names),
        blocks=st.just(alphabet(names)),
        d_model=st.just(d_model),
        vocab_size=st.just(40),
        mlp=st.sampled_from([{"type": name, "width": 48} for name in mlps.names()] + ["none"]),
        combine=st.sampled_from(["sum", "norm_mean"]),
        tie_embeddings=st.booleans(),
        norm=st.sampled_from(["rmsnorm", "layernorm"]),
        residual_in_fp32=st.booleans(),
    ).filter(legal)


def legal(spec: dict[str, Any]) -> bool:
    """'-' is an MLP alone, and needs one."""
    return not (spec["mlp"] == "none" and "-" in spec["pattern"].replace("[", "").split())


def alphabet(names: Sequence[str] | None = None) -> dict[str, Any]:
    """A block for every mixer, named as it is, with small sizes; its MLP is that of the model."""
    blocks = {}
    for name in names or mixers.names():
        fields = mixers.get(name).Config.__dataclass_fields__
        blocks[name] = {"mixer": {"type": name, **{key: size for key, size in SMALL.items() if key in fields}}}
    return blocks


def patterns(names: Sequence[str] | None = None) -> st.SearchStrategy[str]:
    """Text of the pattern language with at least one mixer: counts, groups, side by side, shared weights, overrides."""
    names = list(names or mixers.names())
    members = st.sampled_from(names).flatmap(overridden)
    pair = st.lists(members, min_size=2, max_size=3).map(lambda parts: f"<{'|'.join(parts)}>")
    shared = st.sampled_from(names).flatmap(shares)
    counted = st.tuples(members, st.sampled_from(["", "", "2"])).map("".join)
    alone = st.one_of(counted, counted, pair, shared)
    group = st.tuples(alone, members, st.sampled_from(["", "2"])).map(lambda g: f"({g[0]} {g[1]}){g[2]}")
    items = st.lists(st.one_of(alone, group, st.just("-")), min_size=1, max_size=3)
    return items.filter(lambda chosen: set(chosen) != {"-"}).map(" ".join)


def overridden(name: str) -> st.SearchStrategy[str]:
    """A block, sometimes with a setting of its own."""
    fields = mixers.get(name).Config.__dataclass_fields__
    choices = [f"{{{key}: {value}}}" for key, values in OVERRIDES.items() if key in fields for value in values]
    return st.sampled_from([f"[{name}]"] * 3 + [f"[{name}]{choice}" for choice in choices])


def shares(name: str) -> st.SearchStrategy[str]:
    """Two places with the same weights, perhaps under other settings."""
    label = name.translate({ord(digit): None for digit in "0123456789"}).lower() + "_twice"
    label = f"{label}{'_x' * sum(c.isdigit() for c in name)}"
    places = overridden(name).map(lambda text: text.replace("]", f"]@{label}", 1))
    return st.tuples(places, places).map(" ".join)
