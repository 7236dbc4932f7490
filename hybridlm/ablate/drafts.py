"""From arms and axes to specs: named arms crossed with the product of all axes, each alike or not, then matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridlm.ablate.arms import Arm, arm_cost
from hybridlm.ablate.axes import Axis, changes_at, points, stack_at
from hybridlm.ablate.changes import changed
from hybridlm.ablate.match import Matched, Matcher
from hybridlm.ablate.parts import Match
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import PatternError, SpecError, UnsupportedError, did_you_mean
from hybridlm.problems import Problems

MISTAKES = (SpecError, PatternError, UnsupportedError)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An arm before it is matched and costed.

    name, changes, coordinates: as Arm has them. point: {axis: which of its values}.
    given:  the model's mapping, with what the file changes.
    spec:   resolved.
    listed: its named arm, or None.
    """

    name: str
    changes: Mapping[str, Any]
    coordinates: Mapping[str, Any]
    point: Mapping[str, int]
    given: Mapping[str, Any]
    spec: ModelSpec
    listed: str | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """An arm by its name alone: the named arm that it comes of, or None, and where on the axes it stands."""

    listed: str | None
    point: Mapping[str, int]
    coordinates: Mapping[str, Any]

    @property
    def name(self) -> str:
        """hybrid,ratio=3"""
        return ",".join(
            [*([self.listed] if self.listed else []), *(f"{k}={_shown(v)}" for k, v in self.coordinates.items())]
        )


def places(arms: Mapping[str, Any], axes: Sequence[Axis]) -> list[Place]:
    """Every arm that a study names, whether it can be built or not. SpecError: too many."""
    found = []
    for listed in arms or ([None] if axes else []):
        for point in points(axes):
            labels = {axis.name: axis.labels[i] for axis, i in zip(axes, point.values(), strict=True)}
            found.append(Place(listed=listed, point=point, coordinates=labels))
    return found


def drafts(
    base: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    axes: Sequence[Axis],
    wanted: Iterable[Place],
    problems: Problems,
) -> list[Draft]:
    """The wanted arms of a study whose baseline is `base`. What cannot be built is among the problems."""
    found, wrong = [], {}
    for place in wanted:
        try:
            changes, given = _given(base, arms.get(place.listed, {}), axes, place.point)
            about = {"name": place.name, "changes": changes, "coordinates": place.coordinates, "point": place.point}
            spec = plan(ModelSpec.from_dict(given)).spec
            found.append(Draft(**about, given=given, spec=spec, listed=place.listed))
        except MISTAKES as error:
            wrong.setdefault(str(error), []).append(place.name)
    for error, names in wrong.items():
        problems.add(f"arms.{names[0]}" + f" (and {len(names) - 1} more)" * (len(names) > 1), error)
    return found


def _given(
    base: Mapping[str, Any], arm: Mapping[str, Any], axes: Sequence[Axis], point: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The changes of an arm at a point, and the model's mapping with them."""
    changes = {**arm, **changes_at(axes, point)}
    given = changed(base, changes)
    if pattern := stack_at(axes, point, ModelSpec.from_dict(given)):
        changes, given = {**changes, "pattern": pattern}, {**given, "pattern": pattern}
    return changes, given


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_alike(found: Sequence[Draft], axes: Sequence[Axis], problems: Problems) -> None:
    """Named arms that are one model, and axes all of whose values give the same models, are problems."""
    for axis in axes:
        groups: dict[tuple, set[ModelSpec]] = {}
        for draft in found:
            rest = (draft.listed, *(i for name, i in draft.point.items() if name != axis.name))
            groups.setdefault(rest, set()).add(draft.spec)
        if groups and all(len(specs) == 1 for specs in groups.values()) and _complete(found, axis):
            fix = "name a block that the pattern uses" if axis.path.startswith("blocks.") else "take it out"
            problems.add(
                f"axes.{axis.name}", f"{axis.path} changes nothing: all of its values give the same model; {fix}"
            )
    first: dict[tuple, Draft] = {}
    for draft in found:
        same = first.setdefault((tuple(draft.point.items()), draft.spec), draft)
        if same is not draft:
            problems.add(f"arms.{draft.name}", f"it is the same model as {same.name}; take one of them out")


def _complete(found: Sequence[Draft], axis: Axis) -> bool:
    """Whether every value of the axis led to some model."""
    return {draft.point[axis.name] for draft in found} == set(range(len(axis.values)))


def shared(found: Sequence[Arm]) -> Iterable[tuple[str, str]]:
    """(arm, the first arm that is the same model) of a product, such as no attention at two placements."""
    first: dict[ModelSpec, Arm] = {}
    for arm in found:
        same = first.setdefault(arm.spec, arm)
        if same is not arm:
            yield arm.name, same.name


# ----------------------------------------------------------------------------------------------------------- the match
def settle(
    found: Sequence[Draft], match: Match | None, reference: str, context: int, problems: Problems
) -> tuple[Arm, ...]:
    """The arms with their costs, matched if the study says so. What cannot be matched is among the problems."""
    if match is None:
        return tuple(_arm(draft, draft.spec, None, context, context) for draft in found)
    matcher, arms, wrong = Matcher(match, context), [], {}
    targets: dict[str, float] = {}
    for draft in found:
        try:
            target = _target(draft, found, match, reference)
            if target.name not in targets:
                targets[target.name] = matcher.measure(target.spec)
            given = draft.spec.to_dict() if draft is target else draft.given
            fit = Matched(draft.spec, 0.0) if draft is target else matcher.matched(given, targets[target.name])
            arms.append(_arm(draft, plan(fit.spec).spec, fit.residual, context, match.at or context))
        except MISTAKES as error:
            wrong.setdefault(str(error), []).append(draft.name)
    for error, names in wrong.items():
        problems.add(f"arms.{names[0]}" + f" (and {len(names) - 1} more)" * (len(names) > 1), error)
    _check_undone(found, arms, match, problems)
    return tuple(arms)


def _arm(draft: Draft, spec: ModelSpec, residual: float | None, context: int, length: int) -> Arm:
    about = {"name": draft.name, "changes": draft.changes, "coordinates": draft.coordinates, "residual": residual}
    return Arm(**about, spec=spec, cost=arm_cost(spec, context, length))


def _target(draft: Draft, found: Sequence[Draft], match: Match, reference: str) -> Draft:
    """The draft that this one is matched with."""
    names = [other.name for other in found]
    if not isinstance(match.of, Mapping):
        wanted = match.of or reference
        if wanted not in names:
            raise SpecError(f"match.of: there is no arm {wanted!r}; arms: {_some(names)}.{did_you_mean(wanted, names)}")
        return found[names.index(wanted)]
    for axis, label in match.of.items():
        labels = list(dict.fromkeys(other.coordinates.get(axis) for other in found))
        if axis not in draft.coordinates:
            raise SpecError(f"match.of.{axis}: there is no such axis; axes: {', '.join(draft.coordinates) or 'none'}")
        if label not in labels:
            raise SpecError(f"match.of.{axis}: {label!r} is none of its values {', '.join(map(str, labels))}")
    wanted = {**draft.coordinates, **match.of}
    fit = [other for other in found if other.coordinates == wanted and other.listed == draft.listed]
    if not fit:
        raise SpecError(f"match.of: the arm at {wanted} cannot be built")
    return fit[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + ", ..." * (len(names) > 12)


def _check_undone(found: Sequence[Draft], arms: Sequence[Arm], match: Match, problems: Problems) -> None:
    """Arms that differ, but no longer once they are matched."""
    before = {draft.name: draft.spec for draft in found}
    for name, same in shared(arms):
        if before[name] != before[same]:
            problems.add(
                f"arms.{name}",
                f"match by: {match.by} undoes what it changes: matched, it is the same model as {same}; "
                "match by the other width, or none",
            )
