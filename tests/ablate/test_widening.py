"""A grid of learning rates grows at an end where an arm of a claim does best, and nowhere else."""

from dataclasses import replace

import pytest
from made_up import GRID, results, without

from hybridlm.ablate.parts import Claim
from hybridlm.ablate.results import Results, load
from hybridlm.ablate.run import run
from hybridlm.ablate.study import Study
from hybridlm.ablate.widening import widened
from hybridlm.errors import SpecError
from tests.ablate.subjects import small_study

STAYS = Claim(name="stays", metric="accuracy", arm="pure", at_most=0.8)


def found(best, *claims, widen=2, **more):
    made = results({"pure": [0.5, 0.6], "other": [0.5, 0.6]}, *(claims or (STAYS,)), best=best, **more)
    return Results(replace(made.study, widen=widen, source={"lr": list(GRID)}), made.table, made.missing)


@pytest.mark.parametrize(
    ("best", "lr"), [(GRID[2], (1e-3, 2e-3, 4e-3, 8e-3)), (GRID[0], (5e-4, 1e-3, 2e-3, 4e-3)), (GRID[1], None)]
)
def test_a_rate_is_added_where_an_arm_does_best_at_an_end(best, lr):
    wider = widened(found(best))
    if lr is None:
        assert wider is None
    else:
        assert wider.lr == lr
        assert wider.widen == 1
        assert wider.source == {"lr": list(lr), "widen": 1}


def test_at_both_ends_if_two_arms_ask_for_it():
    both = found(GRID[2], STAYS, replace(STAYS, name="too", arm="other"))
    turned = {GRID[0]: GRID[2], GRID[2]: GRID[0]}
    table = [{**row, "lr": turned.get(row["lr"], row["lr"])} if row["arm"] == "other" else row for row in both.table]
    assert widened(Results(both.study, table)).lr == (5e-4, *GRID, 8e-3)


def test_none_is_added_for_an_arm_that_nobody_claims_of_or_when_the_times_are_up():
    assert widened(found(GRID[2], replace(STAYS, arm="other"))).lr[-1] == 8e-3
    assert widened(found(GRID[2], widen=0)) is None


def test_nor_for_rates_that_are_alike():
    """Solved at every rate: the lowest of equals counts as the best, and one below it would say nothing."""
    assert widened(found(GRID[0], worse=0.0)) is None


def test_nor_where_a_run_of_the_end_alone_is_missing():
    """Its mean is not of all seeds, and so it does not count as the best."""
    assert widened(without(found(GRID[2]), "pure", 0, GRID[2])) is None


def test_a_run_goes_on_with_the_rates_that_are_added_and_does_nothing_twice(tmp_path):
    """In so few steps the largest rate is the best; the next one is run for both arms."""
    claim = {"name": "it stays", "metric": "loss", "arm": "pure", "at_least": 0.5}
    given = {**small_study(steps=60, lr=(1e-3, 4e-3), seeds=1, tests=[]).source, "claims": [claim], "widen": 1}
    ran = run(Study.from_dict(given), tmp_path, "here")
    assert ran.study.lr == (1e-3, 4e-3, 1.6e-2)
    assert (ran.done, ran.failed, ran.stopped) == (6, [], False)
    held = load(ran.study, tmp_path)
    assert not held.missing
    assert Study.read(tmp_path / "study.yaml") == ran.study
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(before) == 6
    assert run(Study.from_dict(given), tmp_path, "here").study.lr == ran.study.lr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"widen": -1}, "widen: -1 is out of range"),
        ({"widen": 2, "lr": [1e-3]}, "widen: lr has one rate"),
        ({"widen": 2, "claims": []}, "widen: no claim speaks of an arm"),
        ({"widen": "2"}, "widen: '2'"),
    ],
)
def test_what_cannot_widen_is_refused(changes, reason):
    claim = {"name": "it stays", "metric": "loss", "arm": "pure", "at_least": 0.5}
    with pytest.raises(SpecError, match=reason):
        Study.from_dict({**small_study(lr=(1e-4, 1e-3)).source, "claims": [claim], **changes})
