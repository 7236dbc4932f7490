"""The matcher: arms within half a percent by an independent count, or a refusal that says why."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.ablate.match import ROUND, Matcher, bisect, nearest
from hybridlm.ablate.parts import Match
from hybridlm.ablate.study import Study
from hybridlm.ablate.widths import Widths
from hybridlm.compose.build import build
from hybridlm.compose.cost import model_cost
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError
from hybridlm.registry import mixers

LENGTH = 64
HALF_A_PERCENT = 0.005
MEASURES = ["params", "flops_train", "flops_infer@512", "cache_bytes@512"]
LETTERS = dict(zip("abcdefghijklmnop", mixers.names(), strict=False))
MLPS = ["swiglu", "gelu", "relu2", "geglu", {"type": "swiglu", "width": 100}, {"type": "moe", "experts": 4}, "none"]
REASONS = re.compile(
    r"match: .*(no MLP whose width|does not depend on the width|mixers alone cost more|comes no nearer|is legal: "
    r"|has no \w+; match another)"
)
BASE = {"d_model": 128, "vocab_size": 256, "pattern": "(M3A)3"}


@st.composite
def studies(draw) -> dict:
    """A study file over all mixers, with arms that differ in pattern, MLP and depth."""
    names = st.sampled_from(list(LETTERS))
    patterns = st.lists(names, min_size=1, max_size=5).map("".join)
    base, *arms = draw(st.lists(patterns, min_size=2, max_size=3, unique=True))
    blocks = {name: {"mixer": LETTERS[name]} for name in dict.fromkeys("".join([base, *arms]))}
    for name in blocks:
        if draw(st.booleans()):
            blocks[name]["mlp"] = draw(st.sampled_from(MLPS))
    width = draw(st.sampled_from([32, 48, 64, 96, 128]))
    base = {"d_model": width, "vocab_size": 128, "pattern": base, "blocks": blocks}
    return {
        "name": "random",
        "question": "?",
        "baseline": base,
        "arms": {"base": {}, **{f"arm{i}": {"pattern": pattern} for i, pattern in enumerate(arms)}},
        "match": {"to": draw(st.sampled_from(MEASURES)), "by": draw(st.sampled_from(["mlp", "d_model"]))},
        "data": {"task": "mqar", "params": {"length": LENGTH}},
        "train": {"steps": 100},
        "lr": [1e-3],
        "seeds": 1,
    }


def independent(spec: ModelSpec, match: Match) -> float:
    """The measure by another way than the matcher's: modules on the meta device, states that exist, layers added up."""
    if match.to == "params":
        return sum(parameter.numel() for parameter in build(spec, device="meta").parameters())
    if match.to == "cache_bytes":
        return build(spec, seed=0).init_state(batch=1, max_length=match.at).nbytes
    cost = model_cost(spec)
    tokens, past = (LENGTH, 0) if match.to == "flops_train" else (1, match.at - 1)
    parts = [part for layer in cost.layers for part in (*layer.mixers, layer.mlp, layer.place)]
    flops = sum(part.forward(tokens, past).total for part in parts) + 2 * tokens * spec.d_model * spec.vocab_size
    return flops * 3 / LENGTH if match.to == "flops_train" else flops


def check(given: dict) -> str:
    """What became of a study: matched, or the reason why not."""
    try:
        study = Study.from_dict(given)
    except SpecError as error:
        said = str(error).splitlines()
        strange = [line for line in said[len(said) > 1 :] if not REASONS.search(line)]
        if strange:
            raise
        return "refused"
    target = independent(study.arms[0].spec, study.match)
    for arm in study.arms:
        residual = independent(arm.spec, study.match) / target - 1
        assert abs(residual) <= HALF_A_PERCENT, (arm.name, residual)
        assert residual == pytest.approx(arm.residual, abs=1e-9)
        assert len(plan(arm.spec).layers) == len(arm.changes.get("pattern", given["baseline"]["pattern"]))
    return "matched"


@settings(max_examples=5)
@given(studies())
def test_a_few_random_studies_match_or_say_why(given):
    check(given)


@pytest.mark.deep
def test_200_random_studies_match_or_say_why():
    found = []

    @settings(max_examples=200)
    @given(studies())
    def run(given):
        found.append(check(given))

    run()
    assert len(found) >= 200
    assert found.count("matched") >= 60
    assert found.count("refused") >= 20


def matched(pattern: str, to: str = "params", by: str = "mlp", at: int | None = None, **changes):
    matcher = Matcher(Match(to=to, at=at, by=by), LENGTH)
    base = ModelSpec.from_dict({**BASE, **changes.pop("base", {})})
    return matcher.matched({**base.to_dict(), "pattern": pattern, **changes}, matcher.measure(base))


@pytest.mark.parametrize("pattern", ["M12", "A12", "(MA)6", "<M|A>12", "M11 -{width: 300}", "M10 A{mlp: gelu}2", "m12"])
def test_every_way_to_say_an_mlp_is_changed(pattern):
    found = matched(pattern)
    assert abs(found.residual) <= HALF_A_PERCENT
    assert Widths(found.spec).base % ROUND == 0
    assert len(plan(found.spec).layers) == 12


def test_one_number_changes_every_width_however_it_is_said():
    blocks = {"M": {"mixer": "mamba2", "mlp": {"type": "moe", "width": 24}}, "A": {"mixer": "attention"}}
    pattern = "MA-M{mlp: gelu}-{width: 300}<A|A>{mlp: relu2}<A|A>A{mlp: {type: geglu, width: 10}}@x(MA)2"
    spec = ModelSpec.from_dict({**BASE, "pattern": pattern, "blocks": blocks, "mlp": {"type": "gelu", "width": 50}})

    def widths(spec):
        return [layer.mlp.config.width for layer in plan(spec).layers]

    before = widths(spec)
    assert before == [24, 50, 50, 512, 300, 512, 50, 10, 24, 50, 24, 50]
    assert widths(Widths(spec).spec(48)) == [2 * width for width in before]
    assert widths(Widths(spec).spec(1)) == [max(1, round(width / 24)) for width in before]


def test_different_widths_keep_their_proportion():
    blocks = {
        "M": {"mixer": "mamba2", "mlp": {"type": "swiglu", "width": 400}},
        "A": {"mixer": "attention", "mlp": {"type": "gelu", "width": 800}},
    }
    found = matched("M6A6", blocks=blocks)
    wide, wider = (found.spec.blocks[name]["mlp"]["width"] for name in "MA")
    assert wider / wide == pytest.approx(2, rel=0.01)
    assert wide != 400


def test_near_enough_is_left_as_it_is():
    found = matched("(M3A)2 M3A")
    assert found.residual == 0
    assert found.spec.pattern == "(M3A)2 M3A"


@pytest.mark.parametrize("step", [1, 3, 7])
@given(target=st.integers(1, 10**6), start=st.integers(1, 5000))
def test_bisection_is_exact(step, target, start):
    def at(width):
        return 100 + step * width

    found = bisect(at, target, start)
    assert found == max(1, (target - 100) // step) or at(1) > target


def test_a_multiple_of_8_comes_first_where_it_is_near_enough():
    assert nearest(lambda width: 1000 * width, 100_100, [100, 101, 96, 104]) == 100
    assert nearest(lambda width: 10_000 + width, 10_101, [100, 101, 96, 104]) == 104


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pattern": "M12", "mlp": "none"}, "has no MLP whose width could change; match by: d_model"),
        ({"pattern": "M12", "to": "cache_bytes", "at": 512}, "cache_bytes@512 does not depend on the width of MLPs"),
        ({"pattern": "M40"}, "parameters with MLPs of width 1, and the target is .*: its mixers alone cost more"),
        ({"pattern": "M12", "base": {"pattern": "A"}}, "its mixers alone cost more"),
        (
            {
                "pattern": "CC",
                "mlp": {"type": "moe", "experts": 64},
                "base": {"d_model": 32, "pattern": "AA", "vocab_size": 16, "mlp": {"type": "swiglu", "width": 620}},
                "d_model": 32,
                "vocab_size": 16,
            },
            r"one unit of width is 12,288 parameters, and steps of at most [\d,]+ would do",
        ),
        ({"pattern": "A12", "to": "cache_bytes", "at": 512, "by": "d_model"}, "comes no nearer to .* bytes than"),
        (
            {
                "pattern": "A12",
                "by": "d_model",
                "mlp": "none",
                "blocks": {"A": {"mixer": {"type": "attention", "heads": 64}}},
            },
            r"with d_model \d+, of \d that are legal",
        ),
    ],
)
def test_what_cannot_be_matched_says_why(changes, reason):
    with pytest.raises(SpecError, match=reason):
        matched(**changes)


def test_heads_that_are_given_are_kept_and_divide_the_width():
    blocks = {"M": {"mixer": "mamba2"}, "A": {"mixer": {"type": "attention", "heads": 4}}}
    found = matched("A12", by="d_model", blocks=blocks)
    assert found.spec.d_model % 4 == 0
    assert abs(found.residual) <= HALF_A_PERCENT
    assert plan(found.spec).spec.blocks["A"]["mixer"]["heads"] == 4
