"""A weak arm's two questions: whether its learning rate is at the edge of the grid, and whether it still learns."""

import pytest
from made_up import GRID, at_the_edge, results

from hybridlm.ablate.claims import judge
from hybridlm.ablate.parts import Claim

GOOD, BAD = [0.991, 0.998, 0.994, 0.999, 0.997], [0.355, 0.668, 0.412, 0.530, 0.471]
STAYS = Claim(name="c", metric="accuracy", arm="pure", at_most=0.8)
REACHES = Claim(name="c", metric="accuracy", arm="pure", at_least=0.98)
BEATS = Claim(name="c", metric="accuracy", arm="hybrid", over="pure", by=0.1)
LOSES = Claim(name="c", metric="accuracy", arm="pure", over="hybrid", by=0.1)


# ------------------------------------------------------------------------------------------------------- learning rates
@pytest.mark.parametrize("claim", [STAYS, REACHES, BEATS, LOSES])
@pytest.mark.parametrize(("best", "end"), [(GRID[0], "smallest"), (GRID[2], "largest")])
def test_whatever_calls_an_arm_weak_needs_its_learning_rate_inside_the_grid(claim, best, end):
    values = {"hybrid": GOOD, "pure": BAD}
    inside = judge(claim, results(values)).verdict
    assert inside in ("supported", "refuted")
    found = judge(claim, results(values, best=best, worse=0.1))
    assert found.verdict == "undetermined"
    assert f"; but the best learning rate of pure is the {end} of the grid, {best:g}, and it still gains" in found.said


@pytest.mark.parametrize(
    "claim",
    [
        Claim(name="c", metric="accuracy", arm="hybrid", at_least=0.98),
        Claim(name="c", metric="accuracy", arm="hybrid", at_most=0.8),
    ],
)
def test_what_calls_an_arm_good_does_not(claim):
    edge = judge(claim, results({"hybrid": GOOD, "pure": BAD}, best=GRID[2])).verdict
    assert edge == judge(claim, results({"hybrid": GOOD, "pure": BAD})).verdict != "undetermined"


def test_an_edge_that_gains_next_to_nothing_does_not_matter():
    """0.12 at every learning rate: whichever is best by chance, the next one brings no 0.68."""
    flat = results({"pure": [0.12, 0.125, 0.115]}, best=GRID[2], worse=0.003)
    assert judge(STAYS, flat).verdict == "supported"
    steep = results({"pure": [0.12, 0.125, 0.115]}, best=GRID[2], worse=0.07)
    assert judge(STAYS, steep).verdict == "undetermined"


def test_how_much_is_left_is_counted_to_where_the_verdict_would_turn():
    """0.5 beside 0.9: 0.6 would end a lead of 0.3, and 1.0 would make one of 0.1; a tenth of the way may be gained."""
    values = {"hybrid": [0.9, 0.901, 0.899], "pure": [0.5, 0.501, 0.499]}
    leads = Claim(name="c", metric="accuracy", arm="hybrid", over="pure", by=0.3)
    assert judge(leads, results(values, best=GRID[2], worse=0.009)).verdict == "supported"
    assert judge(leads, results(values, best=GRID[2], worse=0.011)).verdict == "undetermined"
    assert judge(LOSES, results(values, best=GRID[2], worse=0.049)).verdict == "refuted"
    assert judge(LOSES, results(values, best=GRID[2], worse=0.051)).verdict == "undetermined"


def test_every_arm_of_a_trend_but_the_last_is_called_weak():
    ladder = {name: [0.2 * i + d for d in (0, 0.01, 0.02)] for i, name in enumerate("abcd")}
    rises = Claim(name="c", metric="accuracy", arms=tuple("abcd"), increasing=0.05)
    verdicts = [judge(rises, at_the_edge(results(ladder), arm)).verdict for arm in "abcd"]
    assert verdicts == ["undetermined", "undetermined", "undetermined", "supported"]


def test_one_step_down_without_a_doubt_refutes_a_trend():
    falls = {name: [0.8 - 0.2 * i + d for d in (0, 0.01, 0.02)] for i, name in enumerate("abc")}
    rises = Claim(name="c", metric="accuracy", arms=tuple("abc"), increasing=0.05)
    one = at_the_edge(results(falls), "b")
    assert judge(rises, one).verdict == "refuted"
    assert judge(rises, at_the_edge(one, "c")).verdict == "undetermined"


def test_one_learning_rate_says_nothing_of_weakness():
    found = judge(STAYS, results({"pure": BAD}, lr=(1e-3,), best=1e-3))
    assert found.verdict == "undetermined"
    assert found.said.endswith("; but pure was given one learning rate, 0.001, and another may be better")


def test_losses_have_their_edges_the_other_way_up():
    claim = Claim(name="c", metric="loss", arm="pure", at_least=1.5)
    assert judge(claim, results({"pure": [2.0, 2.1, 1.9]}, metric="loss")).verdict == "supported"
    assert (
        judge(claim, results({"pure": [2.0, 2.1, 1.9]}, metric="loss", best=GRID[2], worse=0.1)).verdict
        == "undetermined"
    )


# -------------------------------------------------------------------------------------------------------------- curves
LEVEL = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
RISING = [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
FALLING = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.89, 0.88, 0.865, 0.85]
SLOWLY = [0.1, 0.2, 0.3, 0.4, 0.45, 0.47, 0.48, 0.485, 0.488, 0.49]


@pytest.mark.parametrize(
    ("curve", "verdict"), [(LEVEL, "supported"), (SLOWLY, "supported"), (RISING, "undetermined"), ([], "supported")]
)
def test_an_arm_that_still_learns_is_not_one_that_cannot(curve, verdict):
    found = judge(STAYS, results({"pure": BAD}, curves={"pure": curve}))
    assert found.verdict == verdict
    if verdict == "undetermined":
        assert found.said.endswith(
            "; but pure is not converged: at the pace of the last quarter, seed 0, 1, 2, 3, 4 would pass 0.8 in as "
            "many steps again"
        )


def test_nor_is_one_refuted_that_would_still_get_there():
    assert judge(REACHES, results({"pure": BAD}, curves={"pure": RISING})).verdict == "undetermined"
    assert judge(REACHES, results({"pure": BAD}, curves={"pure": SLOWLY})).verdict == "refuted"


def test_it_is_asked_seed_by_seed():
    """Four of five must stay: one that is on its way changes nothing, two do."""
    claim = Claim(name="c", metric="accuracy", arm="pure", at_most=0.8, seeds=4)
    found = results({"pure": BAD}, curves={"pure": LEVEL})
    for moving, verdict in ((1, "supported"), (2, "undetermined")):
        for row in found.table:
            if row["seed"] < moving:
                row["curve"] = [(100 * (i + 1), {"accuracy": value}) for i, value in enumerate(RISING)]
        assert judge(claim, found).verdict == verdict


def test_a_seed_that_gets_worse_makes_up_for_none_that_gets_better():
    """Four of five stay below 0.8; seed 4 would follow them by falling, and seed 0 leave them by rising."""
    found = results({"pure": [*BAD[:4], 0.85]}, curves={"pure": LEVEL})
    for row in found.table:
        if row["seed"] in (0, 4):
            curve = RISING if row["seed"] == 0 else FALLING
            row["curve"] = [(100 * (i + 1), {"accuracy": value}) for i, value in enumerate(curve)]
    claim = Claim(name="c", metric="accuracy", arm="pure", at_most=0.8, seeds=4)
    assert judge(claim, found).verdict == "undetermined"


def test_a_loss_that_still_falls_is_not_one_that_stays():
    stays = Claim(name="c", metric="loss", arm="pure", at_least=1.5)
    for curve, verdict in (([3 - 0.1 * i for i in range(10)], "undetermined"), ([2.0] * 10, "supported")):
        assert judge(stays, results({"pure": [2.1, 2.1]}, metric="loss", curves={"pure": curve})).verdict == verdict


def test_an_arm_that_gets_worse_at_the_end_is_taken_as_it_is():
    falling = [0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5]
    assert judge(REACHES, results({"pure": BAD}, curves={"pure": falling})).verdict == "refuted"


def test_what_an_arm_already_has_needs_no_convergence():
    claim = Claim(name="c", metric="accuracy", arm="hybrid", at_least=0.98)
    assert judge(claim, results({"hybrid": GOOD}, curves={"hybrid": RISING})).verdict == "supported"


def test_the_curve_of_the_held_out_data_stands_for_another_test():
    found = results({"pure": BAD}, curves={"pure": RISING})
    for row in found.table:
        row["long.accuracy"] = row["accuracy"]
    assert judge(Claim(name="c", metric="long.accuracy", arm="pure", at_most=0.8), found).verdict == "undetermined"
