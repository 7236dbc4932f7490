"""Canonical text, the round trip between text and tree, and compaction."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.compose.pattern import parse
from hybridlm.compose.tree import Block, Parallel, Pattern, Repeat, compact


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("M1", "M"),
        ("(M)", "M"),
        ("((M))2", "M2"),
        ("(MA)", "MA"),
        ("(M2)1", "M2"),
        ("(M2)3", "(M2)3"),
        ("[M]", "M"),
        ("[ssm] 4 -", "[ssm]4-"),
        ("W{window: 128}@x", "W@x{window: 128}"),
        ("W@x{ window: 128 }2", "W@x{window: 128}2"),
        ("W{}", "W"),
        ("A@x m", "A@x m"),
        ("A@x M", "A@xM"),
        ("A@x -", "A@x-"),
        ("(A@x)2 m", "A@x2m"),
        ("<M{d_state: 64} | A>{combine: norm_mean}", "<M{d_state: 64}|A>{combine: norm_mean}"),
        ("W{a: [1, {b: '}'}]}", "W{a: [1, {b: '}'}]}"),
        ("W{a: \"\\\"}\", b: 'it''s'}", "W{a: '\"}', b: it's}"),
    ],
)
def test_canonical_text(text, canonical):
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical
    assert parse(canonical) == parse(text)


names = st.one_of(st.sampled_from("MAWSm"), st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(
        ["1e-3", "no", "null", "010", "0x1", "<<", "*a", "&a", "}", "{", "'", '"', "# x", "a: b", "\x85", "-"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6).filter(lambda k: k != "<<"), inner, max_size=3)
    ),
    max_leaves=5,
)
overrides = st.one_of(
    st.just({}), st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values, min_size=1, max_size=3)
)
labels = st.none() | st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
members = st.builds(Block, name=names, override=overrides)
places = st.one_of(
    st.builds(Block, name=names | st.just("-"), label=labels, override=overrides),
    st.builds(Parallel, members=st.lists(members, min_size=2, max_size=3).map(tuple), label=labels, override=overrides),
)
items = st.recursive(
    places,
    lambda inner: st.builds(Repeat, items=st.lists(inner, min_size=1, max_size=3).map(tuple), count=st.integers(2, 3)),
    max_leaves=6,
)
patterns = st.lists(items, min_size=1, max_size=4).map(tuple).map(Pattern)


def types(value):
    """The value with every scalar's type: True == 1 == 1.0 must not pass for the same."""
    if isinstance(value, dict):
        return {key: types(item) for key, item in value.items()}
    return [types(item) for item in value] if isinstance(value, list) else (type(value), value)


@given(patterns)
def test_text_and_tree_round_trip(pattern):
    again = parse(str(pattern))
    assert again == pattern
    assert str(again) == str(pattern)
    assert len(again.places()) == pattern.length
    assert [types(p.override) for p in again.places()] == [types(p.override) for p in pattern.places()]


@pytest.mark.parametrize(
    ("flat_names", "text"),
    [
        ("MMMAMMMA", "(M3A)2"),
        ("M", "M"),
        ("MA", "MA"),
        ("MMMM", "M4"),
        ("MAMAMAMM", "(MA)3M2"),
        ("MAMA", "MAMA"),
        ("MMAMMAMMM", "(M2A)2M3"),
        ("M-M-M-MAM-M-M-MA", "((M-)3MA)2"),
        (["ssm", "ssm", "A"], "[ssm]2A"),
        ("", ""),
    ],
)
def test_compact(flat_names, text):
    assert compact(flat_names) == text


@given(st.lists(st.sampled_from(["M", "A", "-", "ssm"]), min_size=1, max_size=60))
def test_compact_expands_to_its_names(flat_names):
    text = compact(flat_names)
    assert [place.name for place in parse(text).places()] == flat_names
    assert len(text) <= len("".join(name if len(name) == 1 else f"[{name}]" for name in flat_names))


def test_compact_of_a_deep_stack_is_quick():
    start = time.perf_counter()
    assert len(compact((("M" * 7 + "A") * 8 + "W") * 63)) < 20
    assert time.perf_counter() - start < 2
