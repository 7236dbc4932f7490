"""Fields of a config.json: each is used, known to be without effect, or refused by its name with all others."""

from __future__ import annotations

import json

import pytest

from hybridlm.errors import ExportError
from hybridlm.export.family import FAMILIES, SOURCES, source
from hybridlm.export.fields import NEUTRAL, Fields, listed

NAN, INF = float("nan"), float("inf")
WHERE = "there/config.json"


def fields(**config) -> Fields:
    return Fields(config, WHERE)


def told(read: Fields) -> str:
    """What is refused; empty, if nothing is."""
    try:
        read.done()
    except ExportError as error:
        return str(error)
    return ""


# --------------------------------------------------------------------------------------------------------------- unread
@pytest.mark.parametrize("value", [0, 1, False, "", "x", [], {}, {"a": None}, 0.0, NAN])
def test_what_nobody_asked_for_is_refused_by_name_and_value(value):
    read = fields(d=32, strange=value)
    read.take("d", kind=int)
    assert told(read) == f"{WHERE}: it cannot be read:\n  strange: {value!r} is unknown, and may change the mathematics"


@pytest.mark.parametrize("config", [{"strange": None}, dict.fromkeys(NEUTRAL, "anything"), {}])
def test_what_says_nothing_is_no_fault(config):
    assert told(Fields(config, WHERE)) == ""


def test_a_family_has_neutral_fields_of_its_own():
    read = fields(speed=3, other=3)
    read.neutral("speed", "not there")
    assert "other" in told(read)
    assert "speed" not in told(read)


def test_everything_is_told_at_once():
    read = fields(a="x", b=-1, c=[1], d="gelu", e={"f": 1}, g=1)
    read.take("a", kind=int), read.whole("b", 5), read.several("c", ["k"]), read.must("d", "silu"), read.take("gone")
    read.inside("e"), read.refuse("and this")
    said = told(read).splitlines()
    assert len(said) == 1 + 8
    for word in ("a: 'x'", "b: -1", "c: 1", "d: 'gelu'", "gone: missing", "e.f: 1", "g: 1", "and this"):
        assert sum(word in line for line in said) == 1, word


# ------------------------------------------------------------------------------------------------------- taking a value
@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -3, 10**9], [True, 1.0, "1", [], {}, NAN, 10**400, -(10**400)]),
        (float, [0, 0.5, -1e300, 10**11], [True, "0.5", [], {}, NAN, INF, -INF, 10**400]),
        (bool, [True, False], [0, 1, "true", []]),
        (str, ["", "x"], [0, True, [], {}]),
        (list, [[], [1]], [{}, "x", 0]),
        (dict, [{}, {"a": 1}], [[], "x", 0]),
        ((int, str), [3, "auto"], [0.5, [], {}, 10**400]),
    ],
)
def test_of_a_kind(kind, good, bad):
    for value in good:
        read = fields(n=value)
        assert read.take("n", kind=kind) == value
        assert told(read) == ""
    for value in bad:
        read = fields(n=value)
        assert read.take("n", "instead", kind) == "instead"
        assert read.take("n", kind=kind) is None
        assert "\n  n: " in told(read)


def test_any_kind_where_none_is_named():
    read = fields(n={"a": [NAN]}, truth=True)
    assert read.take("n", 3) is read.config["n"]
    assert read.take("truth", 3) is True
    assert told(read) == ""


@pytest.mark.parametrize("config", [{}, {"n": None}])
def test_missing_and_null_mean_the_default(config):
    read = Fields(config, WHERE)
    assert (read.take("n", 7), read.whole("n", 7), read.several("n", ["x"])) == (7, 7, ["x"])
    assert "n" not in read
    assert read.null("n") == bool(config)
    assert told(read) == ""
    assert read.take("n") is None
    assert "n: missing, and the model cannot be read without it" in told(read)


@pytest.mark.parametrize("value", [0, -1, 17, True, 2.0, "3", None, 10**400])
def test_whole_numbers_have_bounds(value):
    """Without a default, reading goes on with the least one, and the fault is told."""
    read = fields(n=value)
    assert read.whole("n", low=1, high=16) == 1
    assert "n: " in told(read)
    assert fields(n=value).whole("n", 5, high=16) == 5


@pytest.mark.parametrize("value", [1, 16])
def test_bounds_belong_to_the_range(value):
    read = fields(n=value)
    assert read.whole("n", low=1, high=16) == read.whole("n", 5, high=16) == value
    assert told(read) == ""


@pytest.mark.parametrize("value", [[1], ["x", None], ["x", True], ["x", ["y"]], "xy", {"x": 1}, 3])
def test_lists_of_names(value):
    read = fields(n=value)
    assert read.several("n", ["d"]) == ["d"]
    assert "n: " in told(read)


def test_lists_of_numbers_hold_no_truths():
    read = fields(n=[1, 2.5, True])
    assert read.several("n", [], (int, float)) == []
    assert "n: True cannot be in it" in told(read)


# ------------------------------------------------------------------------------------------------------ one value alone
@pytest.mark.parametrize(
    ("value", "fine"), [("silu", True), ("swish", True), (None, True), ("gelu", False), ([], False)]
)
def test_one_of_a_few_values(value, fine):
    read = fields(act=value)
    read.must("act", "silu", "swish", why="no other gate is known")
    assert (told(read) == "") == fine
    assert fine or "only 'silu' or 'swish' can be read: no other gate is known" in told(read)


def test_a_default_that_cannot_be_read_is_refused_where_nothing_is_said():
    read = fields()
    read.must("experts", 0, default=8)
    assert "experts: 8; only 0 can be read" in told(read)


# ----------------------------------------------------------------------------------------------------- fields of fields
@pytest.mark.parametrize("value", [None, {}, {"rope_theta": 5.0}])
def test_inside(value):
    read = fields(rope=value)
    assert read.inside("rope").take("rope_theta", 7.0, float) == (5.0 if value else 7.0)
    assert read.inside("rope") is read.inside("rope")
    assert told(read) == ""


@pytest.mark.parametrize("value", [[], "x", 3, True])
def test_inside_of_what_holds_nothing(value):
    read = fields(rope=value)
    assert read.inside("rope").take("rope_theta", 7.0, float) == 7.0
    assert f"rope: {value!r}; it has to be a mapping" in told(read)


def test_faults_inside_have_the_whole_path():
    read = fields(outer={"inner": {"strange": 1, "n": "x"}, "known": 1})
    read.inside("outer").inside("inner").take("n", kind=int)
    read.inside("outer").take("known")
    assert "\n  outer.inner.strange: 1 is unknown" in told(read)
    assert "\n  outer.inner.n: 'x'; it has to be a whole number" in told(read)
    assert "known: 1" not in told(read)


# ------------------------------------------------------------------------------------------------------------ in errors
def test_an_error_has_an_end():
    """However many faults there are, and however long what somebody wrote."""
    read = Fields({f"x{i}": "y" * 10_000 for i in range(10_000)}, WHERE)
    assert len(told(read)) < 20_000
    assert told(read).endswith("and 9970 more")
    assert listed(["a", "b"]) == "a\n  b"


# ------------------------------------------------------------------------------------------------------ of every family
@pytest.mark.parametrize("name", [*FAMILIES, *SOURCES])
@pytest.mark.parametrize("depth", [-1, 0, -40, 10**9, 10**400, 4097])
def test_numbers_of_layers_that_no_model_has(name, depth):
    """A negative one was once read as a pattern of its own; none is ever counted out."""
    config = {"num_hidden_layers": depth, "n_layer": depth, "hybrid_override_pattern": "M*", "hidden_size": 64}
    config |= {"vocab_size": 97, "intermediate_size": 128, "num_attention_heads": 2, "layer_types": ["mamba"]}
    read = Fields(json.loads(json.dumps(config)), WHERE)
    with pytest.raises(ExportError, match=r"num_hidden_layers: |n_layer: "):
        source(name).spec(read)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "default", "rope_theta": 1e4, "strange": 1},
        {"rope_theta": "1e4"},
        {"rope_theta": True},
        {"rope_theta": {"full": 1e4}},
        {"full_attention": {"rope_theta": 1e4}},
        {"rope_type": "yarn", "original_max_position_embeddings": 8},
        [1e4],
        "default",
    ],
)
@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
def test_positions_that_are_not_the_plain_ones(field, rope):
    config = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 97, "intermediate_size": 128}
    with pytest.raises(ExportError, match=field):
        source("llama").spec(Fields({**config, "num_attention_heads": 2, field: rope}, WHERE))


@pytest.mark.parametrize("size", [0, NAN, INF, 1e-320, 1e300, 10**400, "1", [1.0], None])
def test_multipliers_that_would_leave_nothing_of_a_weight(size):
    given = {"num_hidden_layers": 2, "mlp_multipliers": [1.0, size]}
    with pytest.raises(ExportError, match="mlp_multipliers: "):
        source("falcon_h1").spec(Fields(given, WHERE))
