"""Whether the claims of a study can be tested at all: arms and tests that exist, enough seeds, bars that can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridlm.ablate.parts import Claim, Data, Train
from hybridlm.errors import did_you_mean
from hybridlm.problems import Problems

LEAST_SEEDS = 3
"""Of an interval over seeds."""
FIELDS = {
    "bar": ("arm", "at_least", "at_most", "seeds"),
    "difference": ("arm", "over", "by"),
    "argmin": ("axis", "argmin_between"),
    "trend": ("arms", "increasing"),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What claims are tested in.

    arms:    the names of all; None where the file leaves open which there are.
    alike:   {arm: another one that is the same model}.
    axes:    {name: its values}.
    tests:   {name: the data of a test}, "" for the held-out part of the data.
    guesses: {name of a test: accuracy of its best guess}, of those that have one.
    """

    arms: Sequence[str] | None
    alike: Mapping[str, str]
    axes: Mapping[str, Sequence[Any]]
    tests: Mapping[str, Data]
    guesses: Mapping[str, float]
    train: Train
    seeds: int


def check_claims(claims: Sequence[tuple[str, Claim]], setting: Setting, problems: Problems) -> None:
    """(path, claim) of each claim; what keeps it from being tested, or a run from stopping, is among the problems."""
    _check_stop(setting, problems)
    names = [claim.name for _, claim in claims]
    for path, claim in claims:
        if names.count(claim.name) > 1:
            problems.add(
                f"{path}.name", f"{claim.name!r} is the name of {names.count(claim.name)} claims; each has its own"
            )
        before = len(problems.found)
        _check_fields(path, claim, problems)
        _check_metric(path, claim, setting, problems)
        _check_arms(path, claim, setting, problems)
        if len(problems.found) == before and setting.arms is not None:
            _check_seeds(path, claim, setting, problems)
            _CHECKS[claim.kind](path, claim, setting, problems)
    _check_needs(claims, problems)


def _check_stop(setting: Setting, problems: Problems) -> None:
    """Whether `train.stop_at` is of something that is measured, and can be got to by learning alone."""
    stop, data = setting.train.stop_at, setting.tests[""]
    if stop is None:
        return
    path, known = f"train.stop_at.{stop.metric}", [name for name in data.metrics if name != "solved_at"]
    if stop.metric not in known:
        problems.add(path, f"it is not measured on the held-out part of data; known: {', '.join(known)}")
        return
    high, guess = _range(stop.metric, setting.train)[1], setting.guesses.get("", 0.0)
    if stop.value > high:
        problems.add(path, f"{stop.value:g} is never got to: {stop.metric} is at most {high:g}")
    if stop.metric in ("accuracy", "solved") and stop.value <= (guess if stop.metric == "accuracy" else 0.0):
        problems.add(path, f"{stop.value:g} is there before anything is learned: the best guess gets {guess:.3g}")


def _check_fields(path: str, claim: Claim, problems: Problems) -> None:
    """One kind of claim, and nothing of another."""
    known = dict.fromkeys(name for kind in FIELDS.values() for name in kind)
    said = [name for name in known if getattr(claim, name) not in (None, ())]
    wanted = FIELDS[claim.kind]
    for name in said:
        if name not in wanted:
            problems.add(f"{path}.{name}", f"does not go with {', '.join(n for n in said if n in wanted)}")
    if claim.kind == "bar" and (claim.at_least is None) == (claim.at_most is None):
        problems.add(
            path, "give at_least: or at_most:, or over: and by:, or axis: and argmin_between:, or arms: and increasing:"
        )
    needed = [name for name in wanted if name not in ("at_least", "at_most", "seeds")]
    for name in needed:
        if getattr(claim, name) in (None, ()):
            problems.add(
                f"{path}.{name}", f"missing beside {', '.join(n for n in said if n in wanted) or 'the metric'}"
            )


def _check_metric(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    test = claim.metric.rpartition(".")[0]
    if test not in setting.tests:
        known = [name for name in setting.tests if name]
        problems.add(
            f"{path}.metric",
            f"{claim.metric!r}: there is no test {test!r} in eval; tests: {', '.join(known) or 'none'}."
            + did_you_mean(test, known),
        )
        return
    allowed = [name for name in setting.tests[test].metrics if not (test and name == "solved_at")]
    if claim.measure not in allowed:
        near = did_you_mean(claim.measure, allowed)
        problems.add(f"{path}.metric", f"{claim.metric!r} is not measured there; known: {', '.join(allowed)}.{near}")
    elif claim.measure == "solved_at" and setting.train.stop_at is None:
        problems.add(
            f"{path}.metric", "solved_at is the step at which train.stop_at holds, and it is not given; give it"
        )


def _check_arms(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    if setting.arms is None:
        return
    for key in ("arm", "over", "arms"):
        said = getattr(claim, key)
        for name in (said,) if isinstance(said, str) else said or ():
            if name not in setting.arms:
                some = ", ".join(setting.arms[:12]) + ", ..." * (len(setting.arms) > 12)
                near = did_you_mean(name, setting.arms)
                problems.add(f"{path}.{key}", f"there is no arm {name!r}; arms: {some or 'none'}.{near}")
    if claim.axis is not None and claim.axis not in setting.axes:
        near = did_you_mean(claim.axis, setting.axes)
        problems.add(
            f"{path}.axis", f"there is no axis {claim.axis!r}; axes: {', '.join(setting.axes) or 'none'}.{near}"
        )


def _check_seeds(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    needed = claim.seeds or 1 if claim.kind == "bar" else LEAST_SEEDS
    if setting.seeds < needed:
        what = "is to hold in" if claim.kind == "bar" else "is judged by an interval over seeds, which needs"
        problems.add(path, f"it {what} {needed} seeds, and the study has {setting.seeds}; set seeds: {needed} or more")


# ------------------------------------------------------------------------------------------------------- bars by kind
def _range(measure: str, train: Train) -> tuple[float, float]:
    """The least and the largest that a metric can be."""
    if measure in ("accuracy", "solved"):
        return 0.0, 1.0
    first = min(train.eval_every, train.steps)  # the held-out part is tested then, for the first time
    return (float(first), float("inf")) if measure == "solved_at" else (0.0, float("inf"))


def _check_bar(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    low, high = _range(claim.measure, setting.train)
    key, bar = ("at_least", claim.at_least) if claim.at_least is not None else ("at_most", claim.at_most)
    least = key == "at_least"
    if (bar <= low) if least else (bar >= high):
        problems.add(
            f"{path}.{key}",
            f"{bar:g} cannot fail: {claim.metric} is never {'less' if least else 'more'} than "
            f"{low if least else high:g}",
        )
    elif (bar > high) if least else (bar < low):
        problems.add(f"{path}.{key}", f"{bar:g} cannot hold: {claim.metric} is from {low:g} to {high:g}")
    guess = setting.guesses.get(claim.metric.rpartition(".")[0], 0.0)
    if least and claim.measure == "accuracy" and bar <= guess:
        problems.add(f"{path}.{key}", f"{bar:g} cannot fail: the best guess gets {guess:.3g}; set it higher")
    stop = setting.train.stop_at
    if stop and least and claim.metric == stop.metric and bar > stop.value:
        problems.add(
            f"{path}.{key}",
            f"{bar:g} cannot be counted on: training stops at {stop.metric} {stop.value:g}; raise stop_at",
        )


def _check_difference(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    if claim.arm == claim.over:
        problems.add(f"{path}.over", f"{claim.over!r} is the arm itself; compare it with another")
        return
    one, other = (setting.alike.get(name, name) for name in (claim.arm, claim.over))
    if one == other:
        problems.add(f"{path}.over", f"{claim.over!r} is the same model as {claim.arm!r}; compare it with another")
        return
    low, high = _range(claim.measure, setting.train)
    _check_gain(f"{path}.by", claim.by, high - low, claim.metric, problems)


def _check_trend(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    if len(claim.arms) < 2:
        problems.add(f"{path}.arms", f"{', '.join(claim.arms)}: a trend needs two arms or more")
        return
    low, high = _range(claim.measure, setting.train)
    _check_gain(f"{path}.increasing", claim.increasing, (high - low) / (len(claim.arms) - 1), claim.metric, problems)


def _check_gain(path: str, gain: float, largest: float, metric: str, problems: Problems) -> None:
    if gain >= largest:
        problems.add(path, f"{gain:g} cannot hold: {metric} cannot differ by more than {largest:g}")
    if gain <= -largest:
        problems.add(path, f"{gain:g} cannot fail: {metric} cannot differ by more than {largest:g}")


def _check_argmin(path: str, claim: Claim, setting: Setting, problems: Problems) -> None:
    values = list(setting.axes[claim.axis])
    low, high = claim.argmin_between
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        problems.add(f"{path}.axis", f"{claim.axis!r} has values that are no numbers: {', '.join(map(str, values))}")
    elif len(values) < 3:
        problems.add(
            f"{path}.axis", f"{claim.axis!r} has {len(values)} values; the place of an optimum needs 3 or more"
        )
    elif low <= min(values) and high >= max(values):
        problems.add(
            f"{path}.argmin_between",
            f"[{low:g}, {high:g}] cannot fail: the axis goes from {min(values):g} to {max(values):g}",
        )
    elif high < min(values) or low > max(values):
        problems.add(
            f"{path}.argmin_between",
            f"[{low:g}, {high:g}] cannot hold: the axis goes from {min(values):g} to {max(values):g}",
        )


_CHECKS = {"bar": _check_bar, "difference": _check_difference, "trend": _check_trend, "argmin": _check_argmin}


def _check_needs(claims: Sequence[tuple[str, Claim]], problems: Problems) -> None:
    """Names that exist, and no circle of needs."""
    by_name = {claim.name: claim for _, claim in claims}
    for path, claim in claims:
        for name in claim.needs:
            if name not in by_name:
                problems.add(f"{path}.needs", f"there is no claim {name!r}.{did_you_mean(name, by_name)}")
        if claim.name in _reached(claim, by_name):
            problems.add(f"{path}.needs", f"{claim.name!r} comes to need itself, so it is never decided")


def _reached(claim: Claim, by_name: Mapping[str, Claim]) -> set[str]:
    found: set[str] = set()
    waiting = list(claim.needs)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += by_name[name].needs if name in by_name else ()
    return found
