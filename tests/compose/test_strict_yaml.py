"""Strict YAML: what scalars mean, what is refused and where, limits, interpolation, and writing."""

import os
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.compose import strict_yaml
from hybridlm.compose.strict_yaml import MAX_BYTES, YamlError, compose, dump, dump_flow, interpolate, load, read
from hybridlm.errors import SpecError


@pytest.fixture(autouse=True, scope="module", params=["CSafeLoader", "SafeLoader"])
def _parser(request):
    """Everything here holds with libyaml and without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "_PARSER", getattr(yaml, request.param))
        yield


def error(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(text, name="m.yaml")
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- scalars
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("+4", 4),
        ("0", 0),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.0e-05", 1e-5),
        (".inf", float("inf")),
        ("-.inf", -float("inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0o7", "0o7"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("=", "="),
        ("nan", "nan"),
        ("inf", "inf"),
        (".", "."),
        ("e3", "e3"),
        ("²", "²"),
        ("٣", "٣"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  a\n  b", "a\nb"),
        ("[1, [x, {b: 2.0}]]", [1, ["x", {"b": 2.0}]]),
        ("{}", {}),
    ],
)
def test_values(text, value):
    result = load(f"a: {text}", name="m.yaml")["a"]
    assert result == value
    assert type(result) is type(value)


def test_a_spec():
    text = """
    d_model: 256            # a comment
    pattern: "(M3A)2"
    blocks:
      M: {mixer: {type: mamba2, d_state: 64}, mlp: {type: swiglu}}
      A:
        mixer: {type: attention, heads: 8}
    """
    assert load(text, name="m.yaml") == {
        "d_model": 256,
        "pattern": "(M3A)2",
        "blocks": {
            "M": {"mixer": {"type": "mamba2", "d_state": 64}, "mlp": {"type": "swiglu"}},
            "A": {"mixer": {"type": "attention", "heads": 8}},
        },
    }
    assert load("\ufeffa: 1", name="m.yaml") == {"a": 1}


# ------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.yaml:1:1: empty"),
        ("# nothing\n", "m.yaml:2:1: empty"),
        ("~", "m.yaml:1:1: empty"),
        ("- 1", "m.yaml:1:1: expected a mapping such as `d_model: 256`, got a list"),
        ("d_model:256", "m.yaml:1:1: expected a mapping such as `d_model: 256`, got text"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "m.yaml:4:3: b: duplicate key 'c' (first on line 3)"),
        ("M: 1\n'M': 2", "m.yaml:2:1: duplicate key 'M' (first on line 1)"),
        ("a: &x 1", "m.yaml:1:4: a: the anchor &x is not allowed"),
        ("a: &x {b: 1}", "m.yaml:1:4: a: the anchor &x is not allowed"),
        ("b:\n- *x", "m.yaml:2:3: b.0: the alias *x is not allowed"),
        ("? *x\n: 1", "the alias *x is not allowed"),
        ("<<: {a: 1}", "m.yaml:1:1: the merge key << is not allowed"),
        ("a: !!int 3", "m.yaml:1:4: a: the tag !!int is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not allowed"),
        ("a: ! 3", "m.yaml:1:4: a: the tag ! is not allowed"),
        ("!x {a: 1}", "m.yaml:1:1: the tag !x is not allowed"),
        ("%YAML 1.1\n---\na: 1", "directives"),
        ("%TAG ! tag:x,2000:\n---\na: 1", "directives"),
        ("a: 1\n---\nb: 2", "m.yaml:2:1: a second document"),
        ("1: 2", "m.yaml:1:1: the key 1 is an integer; keys are strings"),
        ("true: 2", "the key True is a bool"),
        ("a: {null: 2}", "m.yaml:1:5: a: the key None is null"),
        ("? [a]\n: 1", "the key ['a'] is a list"),
        ("a: {window:128}", "m.yaml:1:5: a.window:128: a space is missing after the colon"),
        ("a: .nan", "m.yaml:1:4: a: .nan is not allowed"),
        ("a: 9223372036854775808", "needs more than 64 bits"),
        ("a: [1\n", "m.yaml:2:1: a: "),
        ("a: b: c", "text that holds ': ' needs quotes"),
        ("pattern: W{window: 128}", "m.yaml:1:18: mapping values are not allowed"),
        ("a: \x00", "m.yaml: unacceptable character #x0000"),
        ("a: \ud800", "m.yaml: not UTF-8 text (character 3)"),
        ('a: "\\ud800"', "m.yaml:1:"),
    ],
)
def test_refused(text, message):
    assert message in error(text)


def test_errors_know_their_place():
    with pytest.raises(YamlError) as caught:
        compose("a: 1\nb: {c: *x}", name="m.yaml")
    found = caught.value
    assert (found.line, found.column, found.index, found.path) == (2, 8, 12, "b.c")


# -------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: '" + "x" * MAX_BYTES + "'", "more than 262,144 bytes"),
        ("a: '" + "é" * (MAX_BYTES // 2) + "'", "more than 262,144 bytes"),
        ("a: " + "[" * 200_000, "nested deeper than 32"),
        ("a: " + "{b: " * 60_000, "nested deeper than 32"),
        ("".join(" " * i + "a:\n" for i in range(100)), "nested deeper than 32"),
        ("a: [" + "1," * 100_000 + "]", "more than 10,000 nodes"),
        ("".join(f"k{i}:\n" for i in range(6_000)), "more than 10,000 nodes"),
        ("a: " + "9" * 200_000, "needs more than 64 bits"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", "the anchor &a"),
    ],
)
def test_limits(text, words):
    start = time.perf_counter()
    assert words in error(text)
    assert time.perf_counter() - start < 1


def test_at_the_limits():
    deep = "a: " + "[" * 31 + "]" * 31
    assert load(deep, name="m.yaml")["a"] is not None
    assert "nested deeper" in error("a: " + "[" * 32 + "]" * 32)
    assert len(load("a: [" + "1," * 9_997 + "]", name="m.yaml")["a"]) == 9_997
    assert "more than 10,000 nodes" in error("a: [" + "1," * 9_998 + "]")


# --------------------------------------------------------------------------------------------------------------- files
def test_read(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("d_model: 256\nwidth: ${d_model}\n", encoding="utf-8")
    assert read(path) == read(str(path)) == {"d_model": 256, "width": 256}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n\xff", "not UTF-8 text"),
        (b"a: '" + "é".encode() * MAX_BYTES, "more than"),
        (b"a: \x07", "#x0007"),
    ],
)
def test_read_refuses_content(tmp_path, content, words):
    path = tmp_path / "m.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_read_refuses_what_is_no_file(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="directory"):
        read(tmp_path)
    with pytest.raises(SpecError, match="cannot be read"):
        read("a\0b")
    with pytest.raises(SpecError, match="cannot be read"):
        read("x" * 5000)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SpecError, match="not a regular file"):
        read(tmp_path / "fifo")


# ------------------------------------------------------------------------------------------------------- interpolation
def test_interpolation():
    text = "d_model: 64\nw: ${d_model}\nblocks: {A: {heads: '${w}', name: 'x-${a.b}'}}\na: {b: q}\nl: ['${d_model}']"
    assert load(text, name="m.yaml") == {
        "d_model": 64,
        "w": 64,
        "blocks": {"A": {"heads": 64, "name": "x-q"}},
        "a": {"b": "q"},
        "l": [64],
    }


@pytest.mark.parametrize("value", ["1e-3", "true", "null", "text", "'1'", ".inf"])
def test_interpolation_keeps_the_type(value):
    result = load(f"a: {value}\nb: ${{a}}", name="m.yaml")
    assert result["b"] == result["a"]
    assert type(result["b"]) is type(result["a"])


def test_interpolation_in_a_pattern():
    assert load("w: 128\npattern: 'W{window: ${w}}'", name="m.yaml")["pattern"] == "W{window: 128}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: ${d_modl}\nd_model: 3", "m.yaml: a: ${d_modl}: there is no key 'd_modl'. Did you mean 'd_model'?"),
        ("a: ${b.c}\nb: {cc: 1}", "there is no key 'c'"),
        ("a: ${b.c}\nb: 3", "there is no key 'c'"),
        ("a: {x: '${b}'}\nb: [1]", "m.yaml: a.x: ${b} is a list; only a scalar"),
        ("a: ${b}\nb: {c: 1}", "${b} is a mapping; only a scalar"),
        ("a: ${a}", "a cycle: a -> a"),
        ("a: x${b}\nb: ${c}\nc: ${a}", "a cycle: a -> b -> c -> a"),
        ("z: ${a}\na: ${b}\nb: ${a}", "a cycle: z -> a -> b -> a"),
        ("a: ${oc.env:HOME}", "an interpolation is one"),
        ("a: ${oc.env:HOME,x}", "an interpolation is one"),
        ("a: ${b}${b}\nb: 1", "an interpolation is one"),
        ("a: ${${b}}\nb: a", "an interpolation is one"),
        ("a: ${.b}\nb: 1", "an interpolation is one"),
        ("a: ${b[0]}\nb: [1]", "an interpolation is one"),
        ("a: ${}", "an interpolation is one"),
        ("a: '${b'\nb: 1", "an interpolation is one"),
        ("a: '\\${b}'\nb: 1", "an interpolation is one"),
        ("a: ${b}\nb: '???'", "m.yaml: a: interpolation"),
        ("".join(f"a{i}: ${{a{i + 1}}}\n" for i in range(9)) + "a9: 1", "a chain of more than 8"),
        ("a: ${b}\nb: " + "x" * 2000, "longer than 1,024 characters"),
        ("b: 1\n" + "".join(f"a{i}: ${{b}}\n" for i in range(1001)), "more than 1,000 interpolations"),
    ],
)
def test_interpolation_refused(text, message):
    assert message in error(text)


def test_interpolation_does_not_change_what_it_is_given():
    data = {"a": 1, "b": "${a}", "c": {"d": ["${a}"]}}
    assert interpolate(data, name="x") == {"a": 1, "b": 1, "c": {"d": [1]}}
    assert data == {"a": 1, "b": "${a}", "c": {"d": ["${a}"]}}
    assert interpolate({"a": "$b {c} $"}, name="x") == {"a": "$b {c} $"}


# ------------------------------------------------------------------------------------------------------------- writing
def test_dump_is_readable():
    spec = {
        "pattern": "(M3A)2",
        "blocks": {"M": {"mixer": {"type": "mamba2", "dt_max": 1e-5}, "mlp": "none"}},
        "betas": (0.9, 0.95),
        "off": "no",
        "rate": "1e-3",
        "none": None,
    }
    assert dump(spec) == (
        "pattern: (M3A)2\n"
        "blocks:\n"
        "  M:\n"
        "    mixer: {type: mamba2, dt_max: 1.0e-05}\n"
        "    mlp: none\n"
        "betas: [0.9, 0.95]\n"
        "off: no\n"
        "rate: '1e-3'\n"
        "none: null\n"
    )


def test_dump_of_a_flat_mapping():
    assert dump({"d_model": 64, "vocab_size": 256}) == "d_model: 64\nvocab_size: 256\n"


def test_dump_shares_nothing():
    part = {"type": "swiglu"}
    assert load(dump({"a": part, "b": part}), name="x") == {"a": part, "b": part}


keys = st.text(min_size=1, max_size=8).filter(lambda key: key != "<<")
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=12)
)
values = st.recursive(
    scalars | st.sampled_from(["1e-3", "010", "no", "null", "", "- a", "a: b", "#", "\x85", "\n", "\t", "'", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, min_size=1, max_size=4))
def test_what_is_dumped_loads(mapping):
    assert compose(dump(mapping), name="x") == mapping
    assert compose(dump_flow(mapping), name="x") == mapping
    assert "\n" not in dump_flow(mapping)
