"""The studies that ship: each is read, is within its match, and makes claims that can fail; some of them by name."""

import functools

import pytest

from hybridlm.ablate.predict import predict, require_budget
from hybridlm.ablate.study import Study
from hybridlm.resources import config_names, config_path

NAMES = [name for name in config_names() if name.startswith("studies/")]
WANTED = [
    "recall-rescue",
    "recall-rescue-mini",
    "state-size-ladder",
    "selection-against-lti",
    "state-tracking",
    "exact-copying",
    "scaling",
    "h3-hybrid",
    "ratio-curve",
    "placement",
    "a-init",
    "length-extrapolation",
    "length-of-attention",
]


@functools.cache
def shipped(name: str) -> Study:
    return Study.read(config_path(f"studies/{name}"))


@pytest.mark.parametrize("name", WANTED)
def test_a_shipped_study_reads_without_a_warning(name):
    study = shipped(name)
    assert study.name == name
    assert study.claims
    assert study.budget is not None
    assert study.warnings == ()
    assert all(abs(arm.residual or 0) <= 0.005 for arm in study.arms)
    assert len(study.runs()) == len(study.trials())


def test_no_study_ships_that_is_not_named_here():
    assert {f"studies/{name}.yaml" for name in WANTED} == set(NAMES)


@pytest.mark.parametrize("name", [name for name in WANTED if not name.startswith("recall-rescue")])
def test_a_study_for_a_gpu_fits_into_its_budget(name):
    """With seeds and learning rates enough: five for a task, three for text, four rates."""
    study = shipped(name)
    require_budget(study, predict(study))
    assert study.seeds >= (5 if study.data.task else 3)
    assert len(study.lr) >= 4


CHEAPER = 4 * 12 * (36 * 0.54 - 15 * 0.25)
"""Seconds that the knock-outs of four arms of the ratio curve would not take today: a member's 36 readings of 0.54 s
have become 15 in TF32, which take 0.25 s where others share the GPU."""


@pytest.mark.parametrize(
    ("name", "left_out", "took"),
    [
        ("state-size-ladder", (), 476),
        ("state-tracking", (), 320),
        ("selection-against-lti", (), 665),
        ("ratio-curve", ("ratio=0", "ratio=1"), 1700 - CHEAPER),
    ],
)
def test_a_prediction_is_at_most_twice_what_was_measured(name, left_out, took):
    """Seconds of H200s from the packs' first trial.yaml to their last result.json, of the arms that had finished."""
    arms = predict(shipped(name)).arms
    assert took < sum(arms[arm] for arm in arms if arm not in left_out) < 2 * took


def test_the_ratio_curve_is_of_twelve_layers_and_equal_parameters():
    study = shipped("ratio-curve")
    assert [arm.coordinates["ratio"] for arm in study.arms] == [0, 1, 2, 3, 6, 12]
    assert [round(12 * arm.cost.attention_of_layers) for arm in study.arms] == [0, 1, 2, 3, 6, 12]
    assert study.baseline.d_model == 256


def test_scaling_goes_from_a_third_of_a_million_parameters_to_thirty():
    sizes = [arm.cost.params for arm in shipped("scaling").arms]
    assert 0.25e6 < min(sizes) < 0.4e6
    assert 25e6 < max(sizes) < 35e6


def test_the_grid_of_selection_has_both_halves_of_gate_and_selection():
    study = shipped("selection-against-lti")
    mixers = {arm.name: arm.spec.blocks.get("M", {}).get("mixer", {}) for arm in study.arms}
    grid = {(bool(mixers[name]["select"]), mixers[name]["gate"]) for name in ("s6-gate", "s6", "lti-gate", "lti")}
    assert grid == {(True, True), (True, False), (False, True), (False, False)}


def test_length_extrapolation_is_tested_to_a_million():
    study = shipped("length-extrapolation")
    assert max(test.params["length"] for test in study.eval) == 2**20
