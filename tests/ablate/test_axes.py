"""Axes and dotted paths: what an arm becomes, and what is refused."""

import pytest

from hybridlm.ablate.axes import changes_at, points, read_axis, stack_at
from hybridlm.ablate.changes import changed
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError

PLAIN = {"d_model": 64, "vocab_size": 64, "pattern": "M12"}


def test_a_path_fills_in_what_a_file_may_leave_out():
    spec = changed(PLAIN, {"blocks.M.mixer.d_state": 16, "blocks.M.mlp.width": 96, "d_model": 128})
    resolved = plan(ModelSpec.from_dict(spec)).spec
    assert resolved.d_model == 128
    assert resolved.blocks["M"]["mixer"]["d_state"] == 16
    assert resolved.blocks["M"]["mlp"] == {"type": "swiglu", "width": 96}
    assert PLAIN == {"d_model": 64, "vocab_size": 64, "pattern": "M12"}


def test_a_whole_block_is_set_before_its_fields():
    spec = changed(PLAIN, {"blocks.M.mixer.d_state": 8, "blocks.M": {"mixer": "mamba"}})
    assert spec["blocks"]["M"]["mixer"] == {"type": "mamba", "d_state": 8}


def test_what_follows_from_a_width_follows_from_the_changed_one():
    widths = [plan(ModelSpec.from_dict(changed(PLAIN, {"d_model": d}))).spec.mlp["width"] for d in (64, 128)]
    assert widths == [192, 384]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("patern", "a model has no 'patern'.*Did you mean 'pattern'"),
        ("blocks.Q.mixer.d_state", "blocks.Q: not defined; blocks has"),
        ("blocks.M.mixxer.d_state", "blocks.M.mixxer: not defined.*Did you mean 'mixer'"),
        ("d_model.x", "d_model: 64 has no fields"),
        ("", "a model has no ''"),
        ("..", "a model has no ''"),
        ("__class__", "a model has no '__class__'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path, reason):
    with pytest.raises(SpecError, match=reason):
        changed(PLAIN, {path: 3})


def stacks(pattern: str, *axes: tuple[str, dict], **spec) -> list[str]:
    read = [read_axis(name, given) for name, given in axes]
    base = ModelSpec.from_dict({**PLAIN, "pattern": pattern, **spec})
    return [stack_at(read, point, base) for point in points(read)]


def test_a_ratio_keeps_the_depth():
    assert stacks("M12", ("ratio", {"attention": [0, 1, 3, 12]})) == ["M12", "M6AM5", "(M2AM)3", "A12"]
    assert stacks("(M3A)3", ("ratio", {"attention": [0, 3], "place": "front"})) == ["M12", "A3M9"]


def test_a_placement_alone_moves_the_attention_that_is_there():
    found = stacks("(M5A)2", ("where", {"placement": ["even", "middle", "front", "end"]}))
    assert found == ["(M3AM2)2", "M5A2M5", "A2M10", "M10A2"]


def test_axes_cross_and_the_first_varies_slowest():
    found = stacks("M4", ("ratio", {"attention": [1, 2]}), ("where", {"placement": ["front", "end"]}))
    assert found == ["AM3", "M3A", "A2M2", "M2A2"]


def test_named_blocks_stand_for_attention_and_the_rest():
    blocks = {"ssm": {"mixer": "mamba"}, "full": {"mixer": "attention"}, "W": {"mixer": "sliding_window"}}
    axis = ("ratio", {"attention": [0, 1], "block": "full", "rest": "ssm"})
    assert stacks("[ssm]3", axis, blocks=blocks) == ["[ssm]3", "[ssm][full][ssm]"]
    with pytest.raises(
        SpecError, match=r"axes.ratio: the baseline has several blocks with attention \(full, W\); say block"
    ):
        stacks("[ssm]3", ("ratio", {"attention": [0, 1]}), blocks=blocks)
    with pytest.raises(SpecError, match=r"axes\.ratio\.rest: there is no block 'smm'"):
        stacks("[ssm]3", ("ratio", {"attention": [0, 1], "block": "W", "rest": "smm"}), blocks=blocks)


@pytest.mark.parametrize(
    ("pattern", "axis", "reason"),
    [
        ("M4", {"attention": [1, 5]}, "5 attention layers, but the stack has 4"),
        ("M4", {"placement": ["even", "front"]}, "has no attention to place"),
        ("M3A@x", {"attention": [1, 2]}, "from plain blocks"),
        ("M3<M|A>", {"attention": [1, 2]}, "from plain blocks"),
        ("M3-", {"attention": [1, 2]}, "from plain blocks"),
        ("MSM", {"attention": [1, 2]}, r"several blocks without attention \(M, S\)"),
        ("A4", {"attention": [1, 2]}, "no block without attention"),
    ],
)
def test_a_stack_that_cannot_be_made_is_refused(pattern, axis, reason):
    with pytest.raises(SpecError, match=reason):
        stacks(pattern, ("ratio", axis))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (3, "an axis is one path and its values"),
        ({}, "an axis is one path and its values"),
        ({"d_model": [1, 2], "vocab_size": [1, 2]}, "2 paths"),
        ({"d_model": [64]}, "two values or more"),
        ({"d_model": 64}, "two values or more"),
        ({"d_model": [64, 64]}, "stands there twice"),
        ({"attention": [0, True]}, "True is not an integer"),
        ({"attention": [0, -1]}, "out of range"),
        ({"placement": ["even", "evn"]}, "Did you mean 'even'"),
        ({"blocks.M": [{"mixer": "s4"}, {"mixer": "s5"}]}, "give names"),
        ({"attention": [0, 1], "place": "evn"}, "no placement"),
        ({"attention": [0, 1], "block": 3}, "name of a block"),
    ],
)
def test_what_is_no_axis_is_refused(given, reason):
    with pytest.raises(SpecError, match=reason):
        read_axis("x", given)


def test_values_may_have_names():
    axis = read_axis("kind", {"blocks.M": {"lti": {"mixer": "s4"}, "selective": {"mixer": "mamba"}}})
    assert axis.labels == ("lti", "selective")
    assert changes_at([axis], {"kind": 1}) == {"blocks.M": {"mixer": "mamba"}}


def test_too_many_arms_are_refused_before_they_are_made():
    axes = [read_axis(f"x{i}", {f"a{i}": list(range(100))}) for i in range(8)]
    with pytest.raises(SpecError, match="10,000,000,000,000,000 arms"):
        list(points(axes))
