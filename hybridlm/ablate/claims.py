"""Verdicts: what the results of a study say of each claim that it made before it ran.

    judge(claim, results).verdict     # supported, refuted or undetermined
    judge(claim, results).said        # why, in one sentence with the figures

A claim is undetermined where its interval straddles the bar, where a run that it speaks of is missing or failed,
where a claim that it needs is not supported, and where the verdict would call an arm weak that was not given its
chance: see doubts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridlm.ablate.doubts import STEPS
from hybridlm.ablate.findings import Finding, Word, argmin, arms_along, bar, difference, trend
from hybridlm.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results
    from hybridlm.ablate.study import Claim

KINDS: dict[str, Callable[[Claim, Results], Finding]] = {
    "bar": bar,
    "difference": difference,
    "trend": trend,
    "argmin": argmin,
}


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: the word, and one sentence with the figures behind it."""

    claim: Claim
    verdict: Word
    said: str


def judge_all(results: Results) -> list[Verdict]:
    """The verdict on every claim of the study, in its order."""
    return [judge(claim, results) for claim in results.study.claims]


def judge(claim: Claim, results: Results) -> Verdict:
    """The verdict on one claim. SpecError: it needs a claim that the study has not, or itself."""
    return _judge(claim, results, ())


def _judge(claim: Claim, results: Results, above: tuple[str, ...]) -> Verdict:
    """above: the claims that need this one, from the first to be judged."""
    gap = next(_gaps(claim, results), None)
    finding = Finding("undetermined", gap) if gap else KINDS[claim.kind](claim, results)
    lacking = [need for need in _needed(claim, results, above) if need.verdict != "supported"]
    if lacking:
        which = " and ".join(f"{need.claim.name!r}, which is {need.verdict}" for need in lacking)
        return Verdict(claim, "undetermined", f"{finding.figures}; it needs {which}")
    if finding.doubts and finding.verdict != "undetermined":
        return Verdict(claim, "undetermined", f"{finding.figures}; but {'; and '.join(finding.doubts)}")
    return Verdict(claim, finding.verdict, finding.figures)


def _needed(claim: Claim, results: Results, above: tuple[str, ...]) -> list[Verdict]:
    claims = {other.name: other for other in results.study.claims}
    above = (*above, claim.name)
    for name in claim.needs:
        if name not in claims:
            raise SpecError(f"claims: {claim.name!r} needs {name!r}, which is none.{did_you_mean(name, claims)}")
        if name in above:
            raise SpecError(f"claims: {' needs '.join(map(repr, (*above, name)))}: a circle; take one need out")
    return [_judge(claims[name], results, above) for name in claim.needs]


# --------------------------------------------------------------------------------------------------------------- gaps
def _gaps(claim: Claim, results: Results) -> Iterator[str]:
    """What is missing of the runs that the claim speaks of: each as a sentence."""
    for arm in arms_of(claim, results):
        wanted, found = len(results.study.lr) * results.study.seeds, len(results.rows(arm))
        if found < wanted:
            why = next((f": {missing.why}" for missing in results.missing if missing.arm == arm), "")
            yield f"{wanted - found} of the {wanted} runs of {arm} are missing{why}"
        elif claim.measure != STEPS:
            values = results.values(arm, claim.metric)
            seeds = [str(seed) for seed, value in enumerate(values.tolist()) if not math.isfinite(value)]
            if seeds:
                yield f"{arm} has no finite {claim.metric} in seed {', '.join(seeds)} at its best learning rate"


def arms_of(claim: Claim, results: Results) -> list[str]:
    """The arms that a claim speaks of."""
    if claim.axis is not None:
        return [arm.name for arm in arms_along(claim.axis, results)]
    return [name for name in (claim.arm, claim.over, *claim.arms) if name is not None]
