"""Arms of equal size: the width of the MLPs, or of the model, is changed until a measure is that of another arm.

    target = matcher.measure(spec of the arm that stays as it is)
    found = matcher.matched(mapping, target)      # found.spec, found.residual

Depth never changes. A width of MLPs is found by exact bisection, as every measure grows with it; that of the model by
bisection and then a look at every width around, since heads that must divide it make the measure jump. Multiples of 8
come first; where none fits and there are MLPs, these make up the rest. What cannot be brought within TOLERANCE is
refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from hybridlm.ablate.parts import Match
from hybridlm.ablate.widths import Widths
from hybridlm.checks import LARGEST
from hybridlm.compose.cost import model_cost
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, UnsupportedError

TOLERANCE = 0.005
"""|measure - target| / target of a matched arm, at the most."""
ROUND = 8
"""Multiples of it are taken where one is near enough."""
AROUND = 0.25
"""Of the bisected d_model: how far from it every width is looked at."""
FARTHEST = 512
"""Steps that this is at the most."""
TRIMMED = 4
"""Widths of the model that are tried with the rest made up by their MLPs."""
UNITS = {"params": "parameters", "flops_train": "FLOPs", "flops_infer": "FLOPs", "cache_bytes": "bytes"}


@dataclass(frozen=True)
class Matched:
    """A spec that was brought to a target, and (measure - target) / target."""

    spec: ModelSpec
    residual: float


@dataclass(frozen=True)
class Matcher:
    """What a study's `match` asks for, of models that are trained on `context` tokens."""

    match: Match
    context: int

    def measure(self, spec: ModelSpec) -> float:
        """What is to agree, of a spec. SpecError, PatternError: as plan raises them."""
        cost, match = model_cost(spec), self.match
        if match.to == "params":
            return cost.parameters
        if match.to == "flops_train":
            return cost.training(self.context).total
        return cost.decoding(match.at).total if match.to == "flops_infer" else cost.state(match.at).total

    def matched(self, given: Mapping[str, Any], target: float) -> Matched:
        """The spec of a mapping, unchanged if it is near enough, with the widths that match otherwise.

        SpecError: no width does, and why.
        """
        spec = ModelSpec.from_dict(given)
        if not target:
            raise SpecError(f"match: the arm to match has no {UNITS[self.match.to]}; match another measure, or none")
        found = Matched(spec, self.measure(spec) / target - 1)
        if abs(found.residual) <= TOLERANCE:
            return found
        return self._by_mlp(spec, target) if self.match.by == "mlp" else self._by_d_model(given, target)

    def _by_mlp(self, spec: ModelSpec, target: float) -> Matched:
        widths = Widths(spec)
        measure = {}

        def at(width: int) -> float:
            measure[width] = measure.get(width) or self.measure(widths.spec(width))
            return measure[width]

        if not widths.base:
            raise SpecError(f"match: {spec.pattern} has no MLP whose width could change; match by: d_model")
        if at(1) == at(2):
            raise SpecError(f"match: {self.match} does not depend on the width of MLPs; match by: d_model, or another")
        if at(1) > target * (1 + TOLERANCE):
            self._refuse_low(spec, at(1), target)
        width = bisect(at, target, widths.base)
        best = nearest(at, target, [*rounded(width), width, width + 1])
        if abs(at(best) / target - 1) > TOLERANCE:
            self._refuse_coarse(spec, at, width, target)
        return Matched(widths.spec(best), at(best) / target - 1)

    def _refuse_low(self, spec: ModelSpec, least: float, target: float) -> NoReturn:
        unit = UNITS[self.match.to]
        raise SpecError(
            f"match: {spec.pattern} has {_number(least)} {unit} with MLPs of width 1, and the target is "
            f"{_number(target)}: its mixers alone cost more. Give the arm to match wider MLPs, or match by: d_model"
        )

    def _refuse_coarse(self, spec: ModelSpec, at: Callable[[int], float], width: int, target: float) -> NoReturn:
        unit, step = UNITS[self.match.to], at(width + 1) - at(width)
        below, above = (at(w) / target - 1 for w in (width, width + 1))
        raise SpecError(
            f"match: {spec.pattern} comes no nearer to {_number(target)} {unit} than {below:+.2%} with MLPs of width "
            f"{width} and {above:+.2%} with {width + 1}: one unit of width is {_number(step)} {unit}, and steps of at "
            f"most {_number(2 * TOLERANCE * target)} would do. Give fewer layers an MLP, make the models larger, or "
            "match by: d_model"
        )

    def _by_d_model(self, given: Mapping[str, Any], target: float) -> Matched:
        models = _Models(self, given)
        widths = models.near(target)
        for found in self._candidates(models, widths, target):
            if abs(found.residual) <= TOLERANCE:
                return found
        raise SpecError(self._no_width(given, target, widths, models))

    def _candidates(self, models: _Models, widths: range, target: float) -> Iterator[Matched]:
        """The nearest multiple of ROUND; those next to the target with their MLPs trimmed; the nearest of any width."""
        even = models.by_distance(widths, target, ROUND)
        for width in even[:1]:
            yield Matched(models.spec(width), models.at(width) / target - 1)
        for width in even[:TRIMMED]:
            with suppress(SpecError):
                yield self._by_mlp(models.spec(width), target)
        for width in models.by_distance(widths, target, 1)[:1]:
            yield Matched(models.spec(width), models.at(width) / target - 1)

    def _no_width(self, given: Mapping[str, Any], target: float, widths: range, models: _Models) -> str:
        legal = {width: models.at(width) for width in widths if models.at(width) is not None}
        if not legal:
            return f"match: {given['pattern']}: no d_model from {widths[0]} to {widths[-1]} is legal: {models.reason}"
        best = models.by_distance(widths, target, 1)[0]
        many = f"of {len(legal)} that are legal" if len(legal) < len(widths) else "of all"
        return (
            f"match: {given['pattern']} comes no nearer to {_number(target)} {UNITS[self.match.to]} than "
            f"{legal[best] / target - 1:+.2%} with d_model {best}, {many} from {widths[0]} to {widths[-1]}. Make "
            "the models larger, leave heads and head_dim free, or match by: mlp"
        )


class _Models:
    """The models of a mapping at other widths: a width that some part refuses has none."""

    def __init__(self, matcher: Matcher, given: Mapping[str, Any]):
        self.matcher, self.given, self.reason = matcher, given, ""
        self._measured: dict[int, float | None] = {}

    def spec(self, width: int) -> ModelSpec:
        return ModelSpec.from_dict({**self.given, "d_model": width})

    def at(self, width: int) -> float | None:
        """The measure, or None where the width is not legal."""
        if width not in self._measured:
            try:
                self._measured[width] = self.matcher.measure(self.spec(width))
            except (SpecError, UnsupportedError) as error:
                self._measured[width], self.reason = None, str(error)
        return self._measured[width]

    def near(self, target: float) -> range:
        """Widths around the one that bisection ends at."""
        found = bisect(self._below, target, self.given["d_model"])
        reach = min(max(ROUND, int(found * AROUND)), FARTHEST)
        return range(max(1, found - reach), min(LARGEST, found + reach) + 1)

    def by_distance(self, widths: range, target: float, step: int) -> list[int]:
        """The legal multiples of `step` among the widths, those with a measure next to the target first."""
        legal = [width for width in widths if width % step == 0 and self.at(width) is not None]
        return sorted(legal, key=lambda width: abs(self.at(width) - target))

    def _below(self, width: int) -> float:
        """The measure of the nearest legal width from `width` down; 0 where there is none."""
        for nearer in range(width, max(0, width - 2 * self.given["d_model"]), -1):
            if self.at(nearer) is not None:
                return self.at(nearer)
        return 0


def bisect(at: Callable[[int], float], target: float, start: int) -> int:
    """The largest width whose measure is at most target, of a measure that grows; 1 if none is. From `start` on."""
    high = max(start, 2)
    while at(high) <= target and high < LARGEST:
        high = min(2 * high, LARGEST)
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) <= target else (low, middle)
    return high if at(high) <= target else low


def rounded(width: int) -> list[int]:
    """The multiples of ROUND on both sides of a width."""
    below = width // ROUND * ROUND
    return [multiple for multiple in (below, below + ROUND) if multiple]


def nearest(at: Callable[[int], float], target: float, widths: Iterable[int]) -> int:
    """The multiple of ROUND next to the target if it is near enough, else the width that is next of all."""
    by_distance = sorted(widths, key=lambda width: abs(at(width) - target))
    fine = [width for width in by_distance if width % ROUND == 0 and abs(at(width) / target - 1) <= TOLERANCE]
    return [*fine, *by_distance][0]


def _number(value: float) -> str:
    return f"{value:,.0f}"
