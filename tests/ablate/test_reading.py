"""A study file: what it becomes, and that all of its mistakes are told at once, each with its place and a fix."""

import copy
import re

import pytest

from hybridlm.ablate.study import Study
from hybridlm.errors import SpecError

GOOD = {
    "name": "good",
    "question": "Is it?",
    "baseline": {"d_model": 64, "vocab_size": 128, "pattern": "MA"},
    "arms": {"hybrid": {}, "pure": {"pattern": "MM"}, "small": {"blocks.M.mixer.d_state": 16}},
    "data": {"task": "mqar", "params": {"pairs": 8}},
    "eval": [{"name": "long", "task": "mqar", "params": {"length": 128}}],
    "train": {"steps": 500, "stop_at": {"accuracy": 0.99}},
    "lr": [5e-4, 1e-3, 2e-3, 4e-3],
    "seeds": 5,
    "budget": {"minutes": 30, "cores": 2},
    "claims": [
        {"name": "solves", "metric": "accuracy", "arm": "hybrid", "at_least": 0.98, "seeds": 4},
        {"name": "better", "metric": "long.accuracy", "arm": "hybrid", "over": "pure", "by": 0.1, "needs": ["solves"]},
    ],
}


def file(**changes) -> dict:
    """GOOD with keys changed; None takes one out."""
    given = {**copy.deepcopy(GOOD), **changes}
    return {key: value for key, value in given.items() if value is not None}


def problems(**changes) -> str:
    with pytest.raises(SpecError) as refused:
        Study.from_dict(file(**changes), "x.yaml")
    assert str(refused.value).startswith("x.yaml: ")
    return str(refused.value)


def test_a_good_file_is_read():
    study = Study.from_dict(file())
    assert [arm.name for arm in study.arms] == ["hybrid", "pure", "small"]
    assert study.reference == "hybrid"
    assert study.arm("small").spec.blocks["M"]["mixer"]["d_state"] == 16
    assert [claim.kind for claim in study.claims] == ["bar", "difference"]
    assert study.arm("hybrid").cost.attention_of_layers == 0.5
    assert study.warnings == ()
    assert len(study.trials()) == len(study.runs()) == 3 * 4 * 5


def test_the_text_of_a_study_reads_back_wherever_it_lies(tmp_path):
    (tmp_path / "base.yaml").write_text("{d_model: 64, vocab_size: 128, pattern: MA}")
    path = tmp_path / "study.yaml"
    path.write_text(Study.from_dict(file()).to_yaml())
    beside = file(baseline="base.yaml")
    (tmp_path / "other.yaml").write_text(str(beside))
    (tmp_path / "deeper").mkdir()
    once = Study.from_dict(beside, str(tmp_path / "other.yaml"))
    (tmp_path / "deeper" / "copy.yaml").write_text(once.to_yaml())
    again = Study.read(tmp_path / "deeper" / "copy.yaml")
    assert Study.read(path) == again == once
    assert [trial.key for trial in again.trials()] == [trial.key for trial in once.trials()]


def test_all_mistakes_are_told_at_once():
    said = problems(
        name="a b",
        question=3,
        arms={"hybrid": {}, "pure": {"patern": "MM"}, "other": {"blocks.M.mixer.d_stat": 3}, "same": {"pattern": "MA"}},
        train={"steps": 0, "warmup": -1, "shedule": "cosine", "precision": "fp8"},
        lr=[1e-3, 1e-3],
        seeds=0,
        budget={"minutes": 0, "gpu_hours": 1, "hours": 3},
        match={"to": "parms", "by": "depth"},
        claims=[{"name": "x", "metric": "accuracy", "arm": "hybrid", "at_leest": 1}, 3],
        extra=1,
    )
    for line in [
        "extra: unknown field",
        "name: 'a b'; it names a folder",
        "question: 3; it must be text",
        r"arms.pure: patern: a model has no 'patern'; .*Did you mean 'pattern'",
        "arms.other: blocks.M.mixer.d_stat: unknown field; did you mean d_state",
        "arms.same: it is the same model as hybrid",
        "train.steps: 0 is out of range",
        "train.warmup: -1 is out of range",
        "train.shedule: unknown field; did you mean schedule",
        "train.precision: 'fp8'; it must be one of float32, bf16",
        "lr: .* a learning rate stands there twice",
        "seeds: 0 is out of range",
        "budget.minutes: 0; it must be above 0",
        "budget.hours: unknown field",
        "match.to: 'parms'; .*Did you mean 'params'",
        "match.by: 'depth'; it must be one of mlp, d_model",
        "claims.0.at_leest: unknown field; did you mean at_least",
        "claims.1: 3; it must be a mapping",
    ]:
        assert re.search(rf"^  {line}", said, re.MULTILINE), (line, said)


@pytest.mark.parametrize("key", ["name", "question", "baseline", "data", "train", "lr", "seeds", "arms"])
def test_what_is_missing_is_named(key):
    assert f"{key}: missing" in problems(**{key: None}, claims=None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"baseline": "tinny"}, "baseline: tinny: no such file.*Did you mean 'models/tiny.yaml'"),
        ({"baseline": "M" * 5000}, "baseline: .*name too long"),
        ({"baseline": {"d_model": 64}}, "baseline: pattern: missing"),
        ({"baseline": 3}, "x.yaml: baseline: 3; it must be a mapping"),
        (
            {"arms": None, "axes": {"s": {"blocks.S.mixer.d_state": [16, 64]}}},
            "axes.s: blocks.S.mixer.d_state changes nothing",
        ),
        (
            {"arms": None, "axes": {"d": {"dropout": [0.1, 0.2]}, "e": {"dropout": [0.3, 0.4]}}},
            "dropout is the path of two axes",
        ),
        ({"arms": {}}, "arms: empty"),
        ({"arms": {}, "axes": {}}, "arms: empty"),
        ({"arms": None, "axes": {}}, "arms: (empty|missing)"),
        ({"arms": {"a,b": {}}}, "use letters, digits, _ and - in an arm's name"),
        ({"arms": {"a": 3}}, r"arms.a: 3; it must be a mapping"),
        ({"reference": "hybird"}, "reference: there is no arm 'hybird'.*Did you mean 'hybrid'"),
        ({"match": {"to": "params", "of": "nobody"}}, "match.of: there is no arm 'nobody'"),
        ({"match": {"to": "params", "of": {"ratio": 1}}}, "match.of.ratio: there is no such axis"),
        ({"match": {"to": "cache_bytes"}}, "write cache_bytes@2048"),
        ({"match": {"to": "params@5"}}, "write params alone"),
        (
            {"match": {"to": "cache_bytes@64"}},
            "arms.pure.*: match: cache_bytes@64 does not depend on the width of MLPs",
        ),
        (
            {"match": {"to": "params"}, "arms": {"a": {}, "b": {"mlp.width": 64}}, "claims": None},
            "match by: mlp undoes what it changes",
        ),
        ({"data": {"task": "mqarr"}}, "data: unknown task 'mqarr'.*Did you mean 'mqar'"),
        ({"data": {"task": "mqar", "params": {"pears": 3}}}, "data: mqar.pears: unknown"),
        ({"data": {"task": "mqar", "text": "stdlib"}}, "data: give either task:"),
        ({"data": {"text": "no/such/*.txt"}, "claims": None, "eval": None}, "data: .*no/such"),
        ({"data": {"task": "mqar", "context": 3}}, "data.context: is for text"),
        ({"data": {"task": "mqar", "params": {"vocab_size": 512}}}, "data: hybrid and 2 more: .*vocab"),
        (
            {"eval": [{"name": "a", "task": "mqar"}, {"name": "a", "task": "mqar"}], "claims": None},
            "eval.1.name: 'a' is there twice",
        ),
        ({"eval": [{"task": "mqar"}], "claims": None}, "eval.0.name: missing"),
        ({"eval": [{"name": "a.b", "task": "mqar"}], "claims": None}, "has other characters"),
        ({"train": {"steps": 50, "eval_every": 100}}, "train.eval_every: 100 is more than steps = 50"),
        ({"train": {"steps": 50, "stop_at": {"acuracy": 1}}}, "train.stop_at: 'acuracy'"),
        ({"budget": {}}, "budget: give"),
        ({"budget": {"gpu_hours": 1, "cores": 2}}, "budget.cores: is for a budget in minutes"),
        ({"lr": []}, "lr: "),
        ({"lr": [0.0]}, "lr.0: 0; it must be above 0"),
        ({"lr": ["a", 1e-3, -1]}, r"lr.0: 'a' is not a finite number.*\n.*lr.2: -1 is out of range"),
        (
            {"data": {"task": "copying", "params": {"vocab_size": 3, "tokens": 2}}, "claims": None},
            "data: copying: 2000 draws gave no .* sample",
        ),
        (
            {"eval": [{"name": "few", "task": "copying", "params": {"vocab_size": 3, "tokens": 2}}], "claims": None},
            "eval.0: copying: 2000 draws gave no .* sample",
        ),
        (
            {"train": {"steps": 500, "stop_at": {"bits_per_byte": 1.0}}, "claims": None},
            "train.stop_at.bits_per_byte: it is not measured .*known: accuracy, solved, loss$",
        ),
        ({"train": {"steps": 500, "stop_at": {"accuracy": 1.1}}}, "accuracy: 1.1 is never got to: .* at most 1"),
        ({"train": {"steps": 500, "stop_at": {"solved": 0.0}}}, "solved: 0 is there before anything is learned"),
        (
            {"train": {"steps": 500, "stop_at": {"accuracy": 0.125}}, "claims": None},
            "train.stop_at.accuracy: 0.125 is there before anything is learned: the best guess gets 0.125",
        ),
        ({"seeds": True}, "seeds: True is not an integer"),
        ({"allow": ["few_lr"]}, "allow.*few_lrs"),
    ],
)
def test_a_bad_study_is_refused(changes, reason):
    assert re.search(reason, problems(**changes)), problems(**changes)


CLAIM = {"name": "x", "metric": "accuracy", "arm": "hybrid"}


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({**CLAIM, "at_least": 0.0}, "claims.0.at_least: 0 cannot fail: accuracy is never less than 0"),
        ({**CLAIM, "at_least": 0.125}, "0.125 cannot fail: the best guess gets 0.125"),
        ({**CLAIM, "at_most": 1.0}, "1 cannot fail"),
        ({**CLAIM, "at_least": 1.1}, "1.1 cannot hold"),
        ({**CLAIM, "at_most": -0.1}, "-0.1 cannot hold"),
        ({**CLAIM, "at_least": 0.995}, "training stops at accuracy 0.99"),
        ({**CLAIM, "at_least": 0.9, "at_most": 0.95}, "give at_least: or at_most:"),
        (CLAIM, "give at_least: or at_most:"),
        ({**CLAIM, "at_least": 0.9, "seeds": 6}, "to hold in 6 seeds, and the study has 5; set seeds: 6"),
        ({**CLAIM, "arm": "hybird", "at_least": 0.9}, "claims.0.arm: there is no arm 'hybird'.*Did you mean 'hybrid'"),
        ({**CLAIM, "metric": "acuracy", "at_least": 0.9}, "known: accuracy.*Did you mean 'accuracy'"),
        ({**CLAIM, "metric": "bits_per_byte", "at_least": 0.9}, "not measured there"),
        (
            {**CLAIM, "metric": "lang.accuracy", "at_least": 0.9},
            "there is no test 'lang' in eval; tests: long. Did you mean 'long'",
        ),
        ({**CLAIM, "over": "hybrid", "by": 0.1}, "'hybrid' is the arm itself"),
        ({**CLAIM, "over": "pure"}, "claims.0.by: missing"),
        ({**CLAIM, "over": "pure", "by": 1.0}, "1 cannot hold: accuracy cannot differ by more than 1"),
        ({**CLAIM, "over": "pure", "by": -1.0}, "-1 cannot fail"),
        ({**CLAIM, "over": "pure", "by": 0.1, "at_least": 0.9}, "claims.0.at_least: does not go with arm, over, by"),
        ({"name": "x", "metric": "accuracy", "arms": ["pure"], "increasing": 0.0}, "a trend needs two arms"),
        ({"name": "x", "metric": "accuracy", "arms": ["pure", "pure"], "increasing": 0.0}, "'pure' stands there twice"),
        (
            {"name": "x", "metric": "accuracy", "arms": ["pure", "small", "hybrid"], "increasing": 0.5},
            "0.5 cannot hold",
        ),
        (
            {"name": "x", "metric": "accuracy", "axis": "ratio", "argmin_between": [1, 2]},
            "there is no axis 'ratio'; axes: none",
        ),
        ({**CLAIM, "at_least": 0.9, "needs": ["x"]}, "comes to need itself"),
        ({**CLAIM, "at_least": 0.9, "needs": ["y"]}, "there is no claim 'y'"),
        ({**CLAIM, "at_least": "much"}, "claims.0.at_least: 'much' is not a finite number"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused(claim, reason):
    assert re.search(reason, problems(claims=[claim])), problems(claims=[claim])


RATIO = {
    "arms": None,
    "axes": {"ratio": {"attention": [0, 1, 2]}},
    "baseline": {"d_model": 64, "vocab_size": 128, "pattern": "M4"},
}


@pytest.mark.parametrize(
    ("axes", "between", "reason"),
    [
        ({"ratio": {"attention": [0, 1, 2]}}, [0, 2], "cannot fail: the axis goes from 0 to 2"),
        ({"ratio": {"attention": [0, 1, 2]}}, [3, 4], "cannot hold: the axis goes from 0 to 2"),
        ({"ratio": {"attention": [0, 1]}}, [1, 1], "has 2 values; the place of an optimum needs 3"),
        ({"ratio": {"attention": [0, 1, 2]}}, [2, 1], "2 is greater than 1; swap them"),
        ({"ratio": {"norm": ["rmsnorm", "layernorm"]}}, [1, 2], "values that are no numbers"),
    ],
)
def test_the_place_of_an_optimum_must_be_able_to_fail(axes, between, reason):
    claim = {"name": "x", "metric": "accuracy", "axis": "ratio", "argmin_between": between}
    assert re.search(reason, problems(**{**RATIO, "axes": axes}, claims=[claim]))


def test_an_interval_needs_seeds():
    assert "needs 3 seeds, and the study has 2; set seeds: 3 or more" in problems(
        seeds=2, claims=[GOOD["claims"][1] | {"needs": []}]
    )


def test_solved_at_needs_stop_at():
    claim = {"name": "x", "metric": "solved_at", "arm": "hybrid", "at_most": 100}
    assert "solved_at is the step at which train.stop_at holds" in problems(train={"steps": 500}, claims=[claim])


def test_steps_to_solve_are_counted_from_the_first_test_on():
    claim = {"name": "x", "metric": "solved_at", "arm": "hybrid", "at_most": 99}
    train = {"steps": 500, "eval_every": 100, "stop_at": {"accuracy": 0.99}}
    assert "claims.0.at_most: 99 cannot hold: solved_at is from 100 to inf" in problems(train=train, claims=[claim])
    assert Study.from_dict(file(train=train, claims=[{**claim, "at_most": 100}])).claims[0].at_most == 100


@pytest.mark.parametrize("more", [{}, {"reference": "pure"}, {"match": {"to": "params", "of": "pure"}}])
def test_an_arm_that_cannot_be_built_is_told_once_and_not_missed_elsewhere(more):
    wrong = {"hybrid": {}, "pure": {"patern": "MM"}, "small": {"blocks.M.mixer.d_state": 16}}
    said = problems(arms=wrong, claims=[GOOD["claims"][0], {**GOOD["claims"][1], "arm": "hybird"}], **more)
    assert "2 problems" in said
    assert "arms.pure: patern: a model has no 'patern'" in said
    assert "claims.1.arm: there is no arm 'hybird'; arms: hybrid, pure, small. Did you mean 'hybrid'?" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"arms": None, "axes": {"r": {"placement": ["evn", "front"]}}},
        {"arms": None},
        {"arms": {}},
        {"arms": ["hybrid", "pure"]},
        {"baseline": None},
    ],
)
def test_where_arms_are_not_clear_claims_about_them_are_not_judged(wrong):
    assert "problems" not in problems(**{"claims": [GOOD["claims"][0]], **wrong})


def test_arms_that_are_one_model_are_not_compared():
    axes = {"r": {"attention": [0, 1]}, "p": {"placement": ["front", "end"]}}
    claim = {"name": "x", "metric": "accuracy", "arm": "r=0,p=front", "over": "r=0,p=end", "by": 0.0}
    said = problems(**{**RATIO, "axes": axes}, claims=[claim])
    assert "claims.0.over: 'r=0,p=end' is the same model as 'r=0,p=front'" in said
    Study.from_dict(file(**{**RATIO, "axes": axes}, claims=[{**claim, "over": "r=1,p=end"}]))


def test_a_run_that_never_gets_to_its_learning_rate_is_warned_of():
    study = Study.from_dict(file(train={"steps": 100, "warmup": 100}))
    assert study.warnings == ("train.warmup: 100 of 100 steps; no run gets to its learning rate",)


def test_circles_of_needs_are_refused():
    claims = [{**CLAIM, "name": name, "at_least": 0.9, "needs": [need]} for name, need in ("ab", "bc", "ca")]
    assert problems(claims=claims).count("comes to need itself") == 3


def test_mistakes_that_many_arms_share_are_told_once():
    axes = {"n": {"blocks.M.mixer.d_state": [16, 32, 64]}, "h": {"blocks.A.mixer.heads": [5, 7]}}
    said = problems(arms=None, axes=axes, claims=None)
    assert said.count("does not divide d_model") == 2
    assert "(and 2 more)" in said


def test_warnings_can_be_silenced():
    study = Study.from_dict(file(lr=[1e-3], seeds=4, arms={"hybrid": {}, "pure": {"pattern": "AM"}}))
    assert [warning.split(":")[0] for warning in study.warnings] == ["lr", "seeds", "arms"]
    assert "attention at layer 0" in study.warnings[2]
    quiet = file(
        lr=[1e-3],
        seeds=4,
        arms={"hybrid": {}, "pure": {"pattern": "AM"}},
        allow=["few_lrs", "few_seeds", "attention_first"],
    )
    assert Study.from_dict(quiet).warnings == ()


def test_arms_of_a_product_that_are_one_model_share_their_runs():
    axes = {"ratio": {"attention": [0, 1]}, "where": {"placement": ["middle", "front"]}}
    study = Study.from_dict(file(**{**RATIO, "axes": axes}, claims=None))
    assert [arm.spec.pattern for arm in study.arms] == ["M4", "M4", "M2AM", "AM3"]
    assert len(study.trials()) == 80
    assert len(study.runs()) == len({trial.key for trial in study.trials()}) == 60
    assert any("ratio=0,where=front is the same model as ratio=0,where=middle" in line for line in study.warnings)


def test_each_arm_is_matched_with_the_one_at_its_own_coordinates():
    axes = {"stack": {"pattern": {"M": "M4", "MA": "(MA)2"}}, "width": {"d_model": [64, 128]}}
    study = Study.from_dict(file(arms=None, axes=axes, match={"to": "params", "of": {"stack": "M"}}, claims=None))
    sizes = {arm.name: arm.cost.params for arm in study.arms}
    for width in (64, 128):
        assert sizes[f"stack=MA,width={width}"] == pytest.approx(sizes[f"stack=M,width={width}"], rel=0.005)
    assert sizes["stack=M,width=128"] > 2 * sizes["stack=M,width=64"]
    assert study.arm("stack=M,width=64").residual == 0.0


def test_named_arms_cross_with_axes():
    axes = {"n": {"blocks.M.mixer.d_state": [16, 64]}}
    study = Study.from_dict(file(arms={"hybrid": {}, "pure": {"pattern": "MM"}}, axes=axes, claims=None))
    assert [arm.name for arm in study.arms] == ["hybrid,n=16", "hybrid,n=64", "pure,n=16", "pure,n=64"]
    assert study.arms[3].coordinates == {"n": 64}
    assert study.axes == {"n": (16, 64)}
