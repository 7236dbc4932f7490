"""Each kind of claim: what its figures give, in which words, at its edges."""

import math

import numpy as np
import pytest
from made_up import STEPS, results

from hybridlm.ablate.claims import judge
from hybridlm.ablate.parts import Claim

GOOD, BAD = [0.991, 0.998, 0.994, 0.999, 0.997], [0.355, 0.668, 0.412, 0.530, 0.471]


def word(claim, found):
    return judge(claim, found).verdict


# ---------------------------------------------------------------------------------------------------------------- bars
@pytest.mark.parametrize(
    ("bar", "row", "seeds", "verdict"),
    [
        ({"at_least": 0.98}, GOOD, None, "supported"),
        ({"at_least": 0.98}, [*GOOD[:4], 0.97], None, "refuted"),  # by default in all seeds
        ({"at_least": 0.98}, [*GOOD[:4], 0.97], 4, "supported"),
        ({"at_least": 0.98}, [0.98] * 5, None, "supported"),  # the bar itself counts
        ({"at_most": 0.98}, [0.98] * 5, None, "supported"),
        ({"at_most": 0.8}, BAD, None, "supported"),
        ({"at_most": 0.6}, BAD, None, "refuted"),
        ({"at_most": 0.6}, BAD, 4, "supported"),
    ],
)
def test_a_bar_is_held_in_so_many_seeds(bar, row, seeds, verdict):
    claim = Claim(name="c", metric="accuracy", arm="a", seeds=seeds, **bar)
    assert word(claim, results({"a": row})) == verdict


def test_steps_to_solve_are_counted_and_a_run_that_never_did_needs_more():
    found = results({"a": GOOD})
    for row in found.table:
        row["solved_at"] = [300, 400, 500, 600, None][row["seed"]]
    claim = Claim(name="c", metric="solved_at", arm="a", at_most=600, seeds=4)
    assert judge(claim, found).verdict == "supported"
    assert "4 of 5 seeds (300 to never)" in judge(claim, found).said
    assert word(Claim(name="c", metric="solved_at", arm="a", at_most=600), found) == "refuted"
    assert word(Claim(name="c", metric="solved_at", arm="a", at_least=300), found) == "supported"


# --------------------------------------------------------------------------------------------------------- differences
def test_a_difference_of_losses_counts_what_is_lower_as_better():
    low, high = [1.50, 1.51, 1.49], [1.60, 1.62, 1.59]
    found = results({"a": low, "b": high}, metric="loss")
    assert word(Claim(name="c", metric="loss", arm="a", over="b", by=0.05), found) == "supported"
    assert word(Claim(name="c", metric="loss", arm="b", over="a", by=0.0), found) == "refuted"


def test_a_worse_arm_is_called_so_and_shares_differ_by_one_at_most():
    """Four seeds alike and one not: the interval of bootstrap-t ends far beyond 1, the verdict's words at 1."""
    found = judge(
        Claim(name="c", metric="accuracy", arm="a", over="b", by=0.1),
        results({"a": [0.99, 0.08, 0.991, 0.99, 0.992], "b": [0.99, 0.993, 0.992, 0.994, 0.99]}),
    )
    assert found.said.startswith("a is worse than b by 0.183 in accuracy (")
    assert " to 1; 5 seeds, bootstrap-t)" in found.said


def test_an_interval_that_straddles_the_bar_is_open_and_says_what_would_have_been_found():
    found = judge(
        Claim(name="c", metric="accuracy", arm="a", over="b", by=0.1),
        results({"a": [0.5, 0.9, 0.7], "b": [0.4, 0.5, 0.7]}),
    )
    assert found.verdict == "undetermined"
    assert found.said == (
        "a is better than b by 0.167 in accuracy (-0.35 to 0.684; 3 seeds, t), better by more than 0.1 is asked for; "
        "with this spread 3 seeds find what is 0.679 from the bar in 80% of studies (t test)"
    )


def test_one_seed_decides_no_difference():
    found = judge(Claim(name="c", metric="accuracy", arm="a", over="b", by=0.0), results({"a": [0.99], "b": [0.1]}))
    assert found.verdict == "undetermined"
    assert found.said.endswith("one seed has no interval")


def test_pairs_are_of_one_seed():
    """Shared noise of 0.3 hides nothing: the difference is 0.02 in every seed."""
    noise = np.array([0.1, 0.4, 0.2, 0.35, 0.3])
    found = results({"a": list(noise + 0.02 + np.linspace(0, 1e-3, 5)), "b": list(noise)})
    assert word(Claim(name="c", metric="accuracy", arm="a", over="b", by=0.01), found) == "supported"


def steps_of(a, b):
    found = results({"a": [0.99] * 5, "b": [0.9] * 5})
    for row in found.table:
        row["solved_at"] = (a if row["arm"] == "a" else b)[row["seed"]]
    return found


def test_runs_that_never_solved_count_for_the_other_arm_only():
    fast, never = [300, 310, 290, 305, 300], [None] * 5
    claim = Claim(name="c", metric="solved_at", arm="a", over="b", by=100)
    assert word(claim, steps_of(fast, never)) == "supported"  # by 699 steps at least
    half = [300, None, 290, 305, 300]
    assert word(claim, steps_of(fast, [900, 910, 890, 905, 900])) == "supported"
    found = judge(claim, steps_of(half, [STEPS - 1] * 5))
    assert found.verdict == "undetermined"
    assert word(Claim(name="c", metric="solved_at", arm="a", over="b", by=650), steps_of(fast, never)) == "supported"
    assert word(Claim(name="c", metric="solved_at", arm="b", over="a", by=100), steps_of(fast, never)) == "refuted"
    late = judge(claim, steps_of([None] * 5, [None] * 5))
    assert late.verdict == "undetermined"
    assert late.said.endswith("5 runs of b never got there, and count as 1000 steps")


# -------------------------------------------------------------------------------------------------------------- trends
LADDER = {f"n{n}": [0.2 + 0.15 * i + d for d in (0, 0.01, -0.01, 0.005, 0.002)] for i, n in enumerate((8, 16, 32, 64))}
RISES = Claim(name="c", metric="accuracy", arms=tuple(LADDER), increasing=0.01)


def test_a_ladder_is_climbed_step_by_step():
    found = judge(RISES, results(LADDER))
    assert found.verdict == "supported"
    assert found.said.count("is better than") == 3


def test_one_step_down_refutes_a_ladder_and_one_that_is_unclear_leaves_it_open():
    down = {**LADDER, "n64": [0.3 + d for d in (0, 0.01, 0.02, 0.03, 0.04)]}
    assert word(RISES, results(down)) == "refuted"
    unclear = {**LADDER, "n64": [0.2, 0.9, 0.5, 0.6, 0.8]}
    assert word(RISES, results(unclear)) == "undetermined"


def test_the_steps_of_a_ladder_share_the_level_at_which_they_refute_it():
    """t is -6 with 3 seeds: below -4.3, which refutes a difference, and above -7.6, which would refute one of three."""
    rungs = {"a": [0.2] * 3, "b": [0.5, 0.501, 0.499], "c": [0.8] * 3, "d": [0.7754, 0.7654, 0.7554]}
    down = Claim(name="c", metric="accuracy", arm="d", over="c", by=0.0)
    assert word(down, results(rungs)) == "refuted"
    assert (
        word(Claim(name="c", metric="accuracy", arms=tuple("abcd"), increasing=0.0), results(rungs)) == "undetermined"
    )


def test_a_ladder_of_losses_goes_down():
    losses = {name: [2 - value for value in row] for name, row in LADDER.items()}
    claim = Claim(name="c", metric="loss", arms=tuple(LADDER), increasing=0.01)
    assert word(claim, results(losses, metric="loss")) == "supported"


# -------------------------------------------------------------------------------------------------------------- argmin
RATIOS = (0, 1, 2, 3, 6, 12)
BEST = Claim(name="c", metric="loss", axis="ratio", argmin_between=(1, 4))


def along(best, sd=0.001, depth=0.02, places=("even",), metric="loss", sign=1):
    rng, values, coordinates = np.random.default_rng(0), {}, {}
    for place in places:
        for ratio in RATIOS:
            name, z = f"ratio={ratio},placement={place}", math.log(ratio + 1) - math.log(best + 1)
            values[name] = list(sign * (1.5 + depth * z**2 + sd * rng.normal(size=5)))
            coordinates[name] = {"ratio": ratio, "placement": place}
    return results(values, metric=metric, coordinates=coordinates)


@pytest.mark.parametrize(("best", "verdict"), [(2.0, "supported"), (9.0, "refuted"), (0.3, "refuted"), (3.95, None)])
def test_the_best_of_an_axis_is_where_its_interval_is(best, verdict):
    assert word(BEST, along(best)) == (verdict or "undetermined")


def test_a_flat_axis_has_no_best():
    found = judge(BEST, along(2.0, sd=0.05))
    assert found.verdict == "undetermined"
    assert found.said.startswith("loss is flat along ratio: the best may lie anywhere from ")


def test_an_accuracy_is_best_where_it_is_highest():
    claim = Claim(name="c", metric="accuracy", axis="ratio", argmin_between=(1, 4))
    assert word(claim, along(2.0, metric="accuracy", sign=-1)) == "supported"


def test_another_axis_is_averaged_over():
    assert word(BEST, along(2.0, places=("even", "front"))) == "supported"


def test_arms_at_the_edge_of_their_learning_rates_are_named():
    found = along(2.0)
    for row in found.table:
        if row["arm"] == "ratio=12,placement=even":
            row["loss"] += {1e-3: 0.05, 2e-3: 0.05, 4e-3: -0.05}[row["lr"]]
    assert judge(BEST, found).said.endswith("of ratio=12,placement=even is at the edge of the grid")
