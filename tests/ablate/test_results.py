"""What a study found: result.json to the last digit, damage that is told, and the table that arms are compared by."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from hybridlm.ablate.results import RESULT, Result, Results, load, trial_folder
from hybridlm.errors import CheckpointError, SpecError

ONE = Result(
    key="0123456789abcdef",
    seed=3,
    lr=1e-3,
    steps=200,
    seconds=1.25,
    device="cpu",
    final={"loss": 0.1 + 0.2, "accuracy": 0.5, "solved": 0.0},
    evals={"long": {"loss": math.nan, "accuracy": 0.25}},
    curve=[(100, {"loss": 1.5, "accuracy": 0.125}), (200, {"loss": 0.1 + 0.2, "accuracy": 0.5})],
    knockouts={"0.mixer zeroed": {"loss": 2.0}},
)


@dataclass
class FakeArm:
    name: str


@dataclass
class FakeTrial:
    arm: FakeArm
    seed: int
    lr: float

    @property
    def key(self):
        return f"{self.arm.name}-{self.seed}-{self.lr}"


@dataclass
class FakeStudy:
    names: tuple = ("hybrid", "pure")
    lr: tuple = (1e-3, 2e-3)
    seeds: int = 3

    @property
    def arms(self):
        return [FakeArm(name) for name in self.names]

    def trials(self):
        return [FakeTrial(arm, seed, lr) for arm in self.arms for lr in self.lr for seed in range(self.seeds)]


def fill(folder, study, of):
    """A result for every trial whose (name, seed, lr) `of` gives an accuracy."""
    for trial in study.trials():
        if (accuracy := of(trial.arm.name, trial.seed, trial.lr)) is not None:
            place = trial_folder(folder, trial.key)
            place.mkdir(parents=True, exist_ok=True)
            replace(ONE, key=trial.key, seed=trial.seed, lr=trial.lr, final={"accuracy": accuracy}).write(place)


def test_a_result_is_read_back_to_the_last_digit(tmp_path):
    ONE.write(tmp_path)
    found = Result.read(tmp_path)
    assert math.isnan(found.evals["long"]["loss"])
    assert replace(found, evals={}) == replace(ONE, evals={})
    assert json.loads((tmp_path / RESULT).read_text())["evals"]["long"]["loss"] is None  # JSON that any reader takes


def test_no_result_is_none(tmp_path):
    assert Result.read(tmp_path) is None


@pytest.mark.parametrize("place", [5, 100, 200, -80])
def test_a_changed_character_is_told(tmp_path, place):
    ONE.write(tmp_path)
    text = bytearray((tmp_path / RESULT).read_bytes())
    text[place] = ord("7") if text[place] != ord("7") else ord("8")
    (tmp_path / RESULT).write_bytes(text)
    with pytest.raises(CheckpointError, match=r"result\.json: damaged.*run anew"):
        Result.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"sha256": 1}', "\x00", '{"format": 1'])
def test_what_is_no_result_is_told(tmp_path, text):
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        Result.read(tmp_path)


def test_the_best_learning_rate_is_that_of_the_mean_over_seeds(tmp_path):
    study = FakeStudy()
    fill(tmp_path, study, lambda name, seed, lr: [0.9, 0.1, 0.2][seed] if lr == 1e-3 else 0.5)
    results = load(study, tmp_path)
    assert results.best_lr("hybrid") == 2e-3
    assert results.best_lr("hybrid", "accuracy") == 2e-3
    np.testing.assert_array_equal(results.values("hybrid", "accuracy"), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(results.values("hybrid", "accuracy", lr=1e-3), [0.9, 0.1, 0.2])
    assert results.means("hybrid") == {1e-3: pytest.approx(0.4), 2e-3: 0.5}
    assert not results.missing


def test_seeds_are_paired_where_one_is_missing(tmp_path):
    study = FakeStudy(lr=(1e-3,))
    fill(tmp_path, study, lambda name, seed, lr: None if (name, seed) == ("pure", 1) else 0.1 * seed)
    results = load(study, tmp_path)
    np.testing.assert_array_equal(results.values("pure", "accuracy"), [0.0, math.nan, 0.2])
    assert [(one.arm, one.seed, one.why) for one in results.missing] == [("pure", 1, "it has not finished")]


def test_a_learning_rate_with_fewer_seeds_is_not_the_best(tmp_path):
    study = FakeStudy()
    fill(tmp_path, study, lambda name, seed, lr: 0.5 if lr == 1e-3 else (1.0 if seed == 0 else None))
    assert load(study, tmp_path).best_lr("hybrid") == 1e-3


def test_a_loss_that_is_no_number_is_the_worst():
    rows = [
        {"arm": "hybrid", "seed": seed, "lr": lr, "loss": math.nan if lr == 1e-3 and seed else 3.0}
        for lr in (1e-3, 2e-3)
        for seed in range(3)
    ]
    assert Results(FakeStudy(), rows).best_lr("hybrid", "loss") == 2e-3


def test_loss_is_better_when_lower():
    rows = [{"arm": "pure", "seed": 0, "lr": lr, "loss": loss} for lr, loss in ((1e-3, 2.0), (2e-3, 1.0))]
    results = Results(FakeStudy(seeds=1), rows)
    assert results.score == "loss"
    assert results.best_lr("pure") == 2e-3


def test_nothing_finished_has_no_best_learning_rate(tmp_path):
    results = load(FakeStudy(), tmp_path)
    assert results.best_lr("hybrid") is None
    assert np.isnan(results.values("hybrid", "accuracy")).all()
    assert len(results.missing) == 12


def test_a_damaged_result_is_missing_and_says_so(tmp_path):
    study = FakeStudy()
    fill(tmp_path, study, lambda name, seed, lr: 0.5)
    path = trial_folder(tmp_path, study.trials()[0].key) / RESULT
    path.write_text(path.read_text().replace("0.5", "0.9"))
    (one,) = load(study, tmp_path).missing
    assert "damaged" in one.why


def test_a_crash_says_how(tmp_path):
    study = FakeStudy()
    place = trial_folder(tmp_path, study.trials()[0].key)
    place.mkdir(parents=True)
    (place / "failed.json").write_text('{"error": "ValueError: no"}')
    assert load(study, tmp_path).missing[0].why == "it crashed: ValueError: no"


def test_an_unknown_arm_is_told():
    with pytest.raises(SpecError, match=r"hybird.*Did you mean 'hybrid'"):
        Results(FakeStudy(), []).values("hybird", "accuracy")


def test_metrics_of_an_evaluation_carry_its_name():
    assert ONE.row("hybrid")["long.accuracy"] == 0.25
    assert "long.accuracy" in Results(FakeStudy(), [ONE.row("hybrid")]).metrics()
