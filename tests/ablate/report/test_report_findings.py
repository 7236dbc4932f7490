"""What the report says, against the truth that the synthetic results were made with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from hybridlm.ablate.report import differences, front, grid, knockouts, optimum, rates, ratio, runs, solve, words
from hybridlm.ablate.report.compile import bar
from hybridlm.ablate.report.facts import Facts
from hybridlm.ablate.report.strip import strip_of, strip_svg


@pytest.fixture(scope="module")
def recall(results):
    return Facts(results["recall"])


@pytest.fixture(scope="module")
def curves(results):
    return Facts(results["curves"])


def flat(seeds=4, noise=0.05):
    """Six ratios that are all alike but for noise."""
    made = [synthetic.arm(f"ratio={n}", "M" * (12 - n) + "A" * n, ratio=n) for n in (0, 1, 2, 3, 6, 12)]
    given = {"data": synthetic.Data(text="stdlib"), "train": synthetic.Train(steps=1500), "eval": (), "seeds": seeds}

    def found(of, arm, seed, lr):
        loss = 1.6 + synthetic.random_of(arm.name, seed).normal(0, noise) + 0.1 * abs(np.log2(lr / 2e-3))
        return synthetic.Result(**synthetic.FACTS, key="", seed=seed, lr=lr, final={"loss": loss})

    return Facts(synthetic.results(synthetic.study(made, **given), found))


def test_who_leads(recall):
    """Those that truly solve it, and no other; several are never called the best one."""
    assert {arm.name for arm in recall.leaders()} == set(synthetic.SOLVE_STEP)
    assert "not told apart" in recall.finding()
    assert "is best" not in recall.finding()


def uneven(late=(0.13, 0.12, 0.14, 0.13, 0.99)):
    """One arm solves it, another in one seed of five, a third guesses: what few real seeds look like."""
    made = [synthetic.arm(name, pattern) for name, pattern in (("sure", "MA"), ("late", "MM"), ("guess", "A"))]
    found = {"sure": (0.99, 0.992, 0.991, 0.993, 0.99), "late": late, "guess": (0.12, 0.13, 0.12, 0.12, 0.13)}

    def trial(of, arm, seed, lr):
        score = found[arm.name][seed]
        off = {f"{i}.{kind}.zero": {"accuracy": 0.01} for i, kind in enumerate(arm.spec.pattern)}
        return synthetic.Result(
            **synthetic.FACTS, key="", seed=seed, lr=lr, final={"accuracy": score, "loss": 1.0}, knockouts=off
        )

    return Facts(synthetic.results(synthetic.study(made, eval=(), match=None), trial))


def test_an_arm_that_few_seeds_do_not_tell_from_the_best_is_not_as_good():
    """Its interval reaches 0 as one seed of five got there; it leads nothing, and its price is not enough."""
    facts = uneven()
    assert {arm.name for arm in facts.rivals()} == {"sure", "late"}
    assert [arm.name for arm in facts.leaders()] == ["sure"]
    assert facts.finding() == "sure leads by accuracy (0.991); 1 more trails, too uneven to be sure"
    titles = [chart.title for part in (ratio, front) for chart in part.section(facts).charts]
    assert any(title.startswith("Cheapest leader by accuracy: sure") for title in titles)
    assert not [title for title in titles if "is enough" in title or "is best" in title]


def test_the_difference_of_shares_is_one():
    """Bootstrap-t ends far beyond 1 where four seeds are alike: no two shares differ by more."""
    facts = uneven()
    found = facts.difference("late", "sure")
    assert -1.0 <= found.low < found.mean < found.high == 1.0
    changes = knockouts.costs(facts, "late")["0.M.zero"]
    assert knockouts.change(facts, changes).low == -1.0
    assert np.mean(changes) == pytest.approx(-0.292)


def test_a_branch_is_named_only_if_it_is_missed_more_than_the_others():
    titles = [chart.title for chart in knockouts.section(uneven(late=(0.99, 0.991, 0.99, 0.992, 0.02))).charts]
    assert titles == [
        "sure needs each of its 2 branches: −0.981 accuracy or worse without one",
        "late: −0.787 accuracy without layer 0 M, zeroed, too uneven over seeds to be sure",
        "guess: −0.114 accuracy without its only branch",
    ]


def test_who_solves_it_in_no_seed():
    facts = uneven()
    for row in facts.results.table:
        row["solved_at"] = 500 if (row["arm"], row["seed"]) in (("sure", 1), ("late", 4)) else None
    assert solve._finding(facts) == "guess solves it in no seed within 1,500 steps"
    for row in facts.results.table:
        row["solved_at"] = 500 if row["arm"] == "sure" else None
    assert solve._finding(facts) == "Solved by sure in every seed; by late and guess in none within 1,500 steps"


def test_what_only_holm_s_correction_hides_is_said():
    """An interval that leaves 0 out, and an adjusted p above 0.05."""
    facts = uneven()
    told = {"a": (facts.difference("guess", "sure"), 0.06), "b": (facts.difference("late", "sure"), 0.5)}
    assert differences._finding(facts, "accuracy", told) == (
        "No arm differs from sure in accuracy, after Holm's correction; 1 before it"
    )
    told["c"] = (facts.difference("guess", "sure"), 0.01)
    assert differences._finding(facts, "accuracy", told) == (
        "Against sure by accuracy: c worse; 1 more before Holm's correction; 1 not told apart"
    )


def test_what_no_arm_has_is_no_column():
    tables = [block for block in runs.arms(uneven()).blocks if hasattr(block, "rows")]
    assert "residual of the match" not in tables[1].head
    assert len(tables[1].head) == len(tables[1].rows[0])


def test_one_that_is_best_is_named():
    made = synthetic.study([synthetic.arm("good", "MA"), synthetic.arm("attention alone", "A")], eval=())

    def found(of, arm, seed, lr):
        return synthetic.solved_or_not(of, replace(arm, name="hybrid") if arm.name == "good" else arm, seed, lr)

    assert Facts(synthetic.results(made, found)).finding().startswith("good is best by accuracy")


def test_no_optimum_in_a_flat_basin():
    facts = flat()
    (table,) = [block for block in optimum.section(facts).blocks if hasattr(block, "rows")]
    assert [row[2] for row in table.rows] == ["flat: no optimum is named"]
    assert "No arm is best" in facts.finding()
    assert "No arm differs" in differences.section(facts).charts[0].title
    titles = [chart.title for part in (ratio, front) for chart in part.section(facts).charts]
    assert not [title for title in titles if " is best by " in title.replace("No arm is best", "") or "takes" in title]


def test_the_optimum_is_found(curves):
    """Within the interval of every placement, which spans less than half of the axis."""
    (table,) = [block for block in optimum.section(curves).blocks if hasattr(block, "rows")]
    assert len(table.rows) == len(synthetic.PLACEMENTS)
    for axis, _, best, ends, *_ in table.rows:
        low, high = map(float, ends.split(" to "))
        assert axis == "ratio"
        assert low - 0.02 <= synthetic.BEST_RATIO <= high + 0.02
        assert abs(float(best) - synthetic.BEST_RATIO) < 0.3


def test_front(curves):
    """Brute force: on it is what no other arm beats in all three, by the table alone."""
    points = {arm.name: (curves.mean(arm.name).mean, arm.cost.flops_train, arm.cost.cache_bytes) for arm in curves.arms}
    expected = {
        name
        for name, point in points.items()
        if not any(other != point and all(np.less_equal(other, point)) for other in points.values())
    }
    assert {arm.name for arm in front.front(curves)} == expected
    assert 0 < len(expected) < len(points)


def test_the_price_is_that_of_the_cheapest_leader(recall):
    """The convolution before attention solves it with fewer FLOPs than the hybrid, whose mean is a little better."""
    (flops, cache) = front.section(recall).charts
    assert flops.title.startswith(
        "From accuracy 0.138 (attention alone) to 0.998 (‘convolution, then attention’) takes"
    )
    assert cache.title.startswith("The least cache, of wide state, is enough")


def test_rates(recall, curves):
    assert rates.at_edge(recall) == []
    assert rates.section(recall).charts[0].title == "All arms do best at a learning rate of 0.002, within the grid"
    edge = synthetic.recall(lr=(5e-4, 1e-3, 2e-3))
    assert set(rates.at_edge(Facts(edge))) == {arm.name for arm in edge.study.arms}
    assert any("few" in text for text in rates.warnings_of(curves))


def test_differences(recall):
    """Signs, who differs, and the smallest difference that could be found."""
    found = differences.compared(recall, "accuracy")
    assert set(found) == {arm.name for arm in recall.arms} - {"hybrid"}
    worse = {name for name, (difference, p) in found.items() if p <= 0.05 and difference.mean < 0}
    assert worse == set(synthetic.CEILING)
    (chart, *_) = differences.section(recall).charts
    row = next(row for row in chart.table.rows if row[0].name == "mamba2")
    assert row[1].startswith("−0.4")
    assert row[5] == "yes"
    assert 0 < float(row[6]) < 0.1


def test_steps(recall):
    rows = {row[0].name: row for row in solve.section(recall).charts[1].table.rows}
    assert rows["hybrid"][1] == "5 of 5"
    assert rows["mamba2"][1:5] == ["0 of 5", "0.00 to 0.43", "> 1,500", "≥ 1,500"]
    assert abs(float(rows["hybrid"][3].replace(",", "")) - synthetic.SOLVE_STEP["hybrid"]) < 400


def test_curve_keeps_what_a_seed_ended_with(recall):
    steps, mean, low, high = solve.curve(recall, "hybrid")
    assert list(steps) == list(range(100, 1501, 100))
    assert (low <= mean).all()
    assert (mean <= high).all()
    seeds = [dict(row["curve"]) for row in recall.results.rows("hybrid", 2e-3)]
    assert mean[3] == pytest.approx(np.mean([seed[400]["accuracy"] for seed in seeds]))
    assert solve._held({100: 0.5, 200: 0.9}, 700) == 0.9


def test_a_table_of_curves_shows_what_was_measured_and_nothing_in_between():
    """Tested twice, it has two columns; an arm that ended early keeps its last value; before its first test, a dash."""
    points = {"long": ([125, 250], [1.4, 1.1]), "short": ([125], [0.9]), "late": ([250], [1.3])}
    found = {arm: tuple(np.array(x) for x in (steps, *[mean] * 3)) for arm, (steps, mean) in points.items()}
    assert solve.marks(found) == [125, 250]
    rows = {arm: [solve.at(of, step) for step in (125, 250)] for arm, of in found.items()}
    assert rows == {"long": ["1.400", "1.100"], "short": ["0.900", "0.900"], "late": ["–", "1.300"]}
    every = {"a": tuple(np.array(x) for x in (range(100, 1300, 100), *[range(12)] * 3))}
    assert solve.marks(every) == [300, 600, 900, 1200]


def test_grid(curves):
    assert grid.axes_of(curves) == ("placement", "ratio")
    (chart,) = grid.section(curves).charts
    assert [row[0] for row in chart.table.rows] == list(synthetic.PLACEMENTS)
    assert list(chart.table.head[1:]) == ["0", "1", "2", "3", "6", "12"]
    assert chart.table.rows[3][3] == words.fixed(curves.mean("ratio=2,placement=front").mean)
    assert chart.title.startswith("The worst is placement front, ratio 12")


def test_knockouts(recall):
    """Without attention as much is lost as was taken away; a branch whose loss may be nothing is not named."""
    found = knockouts.costs(recall, "hybrid")
    assert found["1.attention.zero"].shape == (5,)
    assert found["1.attention.zero"].mean() == pytest.approx(-0.87, abs=0.02)
    title = knockouts.section(recall).charts[0].title
    assert title.startswith("hybrid leans most on layer 1 attention, zeroed: −0.8")
    assert knockouts.branch_words("3.mamba2#2.mean") == "layer 3 mamba2#2, its mean"


def test_arms_that_failed_stay(results):
    """An arm without one result is in the tables of what was run and of what failed."""
    made = synthetic.study([synthetic.arm("good", "MA"), synthetic.arm("bad", "A")], eval=())

    def found(of, arm, seed, lr):
        return "it crashed: boom" if arm.name == "bad" else synthetic.solved_or_not(of, arm, seed, lr)

    facts = Facts(synthetic.results(made, found))
    assert [arm.name for arm in facts.arms] == ["good"]
    tables = [block for block in runs.arms(facts).blocks if hasattr(block, "rows")]
    assert [row[0].name for row in tables[0].rows] == ["good", "bad"]
    assert tables[1].rows[1][-2:] == ["–", "0 of 5"]
    (failed,) = runs.failures(facts).blocks
    assert len(failed.rows) == 20


def test_guessing_stands_beside_the_score(recall, curves):
    """8 pairs of 64 values: the best guess is one of the 8 that were shown."""
    assert recall.guess("accuracy") == pytest.approx(1 / 8)
    assert recall.guess("long.accuracy") == pytest.approx(1 / 16)
    assert recall.guess("loss") is None
    assert curves.guess("loss") is None
    assert "Guessing gets 0.125" in ratio.section(recall).charts[0].caption


def test_bar_says_what_is_claimed(results):
    said = [bar(claim) for claim in results["recall"].study.claims]
    assert said[0] == "accuracy of hybrid at least 0.9 in at least 4 seeds"
    assert said[2] == "accuracy of hybrid better than that of mamba2 by more than 0.1"


def test_strip_draws_each_layer():
    """Boxes in the colours of `hybridlm describe --plot`; thousands of layers are few boxes."""
    from hybridlm.compose.picture import colours

    strip = strip_of(synthetic._spec("(M3A)2"))
    svg = strip_svg(strip)
    assert [svg.count(colour) for colour in colours(["mamba2", "attention"])] == [6, 2]
    assert 'aria-label="8 layers: mamba2 × 6 and attention × 2"' in svg
    assert len(strip_svg(strip_of(synthetic._spec("(M7A)500")))) < 20_000


def test_words():
    assert words.number(0) == "0"
    assert words.number(1234567.0) == "1,234,567"
    assert words.number(float("nan")) == "–"
    assert words.signed(-0.5) == "−0.500"
    assert words.share(1 / 12) == "1/12"
    assert words.share(0.123456) == "12.3%"
    assert words.size(0) == "0 B"
    assert words.size(3 * 2**20) == "3 MiB"
    assert words.count(999.6) == "1k"
    assert words.count(1.5e6) == "1.5M"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdef"), 3) == "a, b and 4 more"
    assert words.probability(1e-9) == "< 0.001"
    assert words.readable("a\x00b\u202ec\nd") == "a\ufffdb\ufffdc d"
    assert words.named("a,b") == "‘a,b’"
    assert words.slug("../Ä") != words.slug("../Ö")
    assert words.slug("plain-1") == "plain-1"
