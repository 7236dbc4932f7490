"""Trials: a key for everything that decides a run's numbers, and for nothing else."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from hybridlm.ablate.study import Data, Study, Train

GIVEN = {
    "name": "good",
    "question": "Is it?",
    "baseline": {"d_model": 64, "vocab_size": 128, "pattern": "MA"},
    "arms": {"hybrid": {}, "pure": {"pattern": "MM"}},
    "data": {"task": "mqar", "params": {"pairs": 8}},
    "train": {"steps": 500},
    "lr": [1e-3, 2e-3],
    "seeds": 2,
    "budget": {"minutes": 30, "cores": 2},
    "allow": ["few_lrs", "few_seeds"],
}


def keys(**changes) -> list[str]:
    return [trial.key for trial in Study.from_dict({**GIVEN, **changes}).trials()]


def test_keys_are_16_hex_digits_and_all_different():
    found = keys()
    assert len(set(found)) == len(found) == 2 * 2 * 2
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in found)


def test_what_decides_no_number_changes_no_key():
    claims = [{"name": "x", "metric": "accuracy", "arm": "hybrid", "at_least": 0.9}]
    assert keys(name="other", question="What?", claims=claims, budget=None, reference="pure") == keys()


def test_more_of_a_study_keeps_the_keys_that_it_had():
    assert set(keys()) < set(keys(seeds=3))
    assert set(keys()) < set(keys(lr=[1e-3, 2e-3, 4e-3]))
    assert set(keys()) < set(keys(arms={**GIVEN["arms"], "attention": {"pattern": "AA"}}))


def test_what_decides_numbers_changes_every_key():
    for changes in (
        {"train": {"steps": 501}},
        {"train": {"steps": 500, "clip": None}},
        {"data": {"task": "mqar", "params": {"pairs": 7}}},
        {"data": {"task": "mqar", "params": {"pairs": 8}, "held_out": 999}},
        {"eval": [{"name": "long", "task": "mqar", "params": {"length": 128}}]},
        {"baseline": {**GIVEN["baseline"], "norm": "layernorm"}},
    ):
        assert not set(keys()) & set(keys(**changes)), changes


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, field.name)
        for section, cls in (("train", Train), ("data", Data), ("eval", Data))
        for field in fields(cls)
    ],
)
def test_no_field_is_left_out_of_the_key(section, name):
    """Whatever it holds: what its reader would refuse is as good here."""
    study = Study.from_dict({**GIVEN, "eval": [{"name": "long", "task": "mqar", "params": {"length": 128}}]})
    said = study.eval[0] if section == "eval" else getattr(study, section)
    changed = replace(said, **{name: "another"})
    other = replace(study, **{section: (changed,) if section == "eval" else changed})
    assert not {trial.key for trial in study.trials()} & {trial.key for trial in other.trials()}


def test_a_model_said_otherwise_has_the_same_keys():
    spelled = {"blocks": {"M": {"mixer": "mamba2"}, "A": {"mixer": {"type": "attention"}, "mlp": "swiglu"}}}
    assert keys(baseline={**GIVEN["baseline"], **spelled}) == keys()


@pytest.mark.deep
def test_keys_are_the_same_in_another_process():
    code = (
        "import json, sys; from hybridlm.ablate.study import Study; "
        "print([trial.key for trial in Study.from_dict(json.loads(sys.argv[1])).trials()])"
    )
    given = [sys.executable, "-c", code, json.dumps(GIVEN)]
    found = subprocess.run(given, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PATH": ""})
    assert found.stdout.strip() == str(keys())
