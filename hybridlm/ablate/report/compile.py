"""From results to a document: every section asked in turn, verdicts first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hybridlm.ablate.claims import Verdict, judge_all
from hybridlm.ablate.report import (
    differences,
    front,
    grid,
    knockouts,
    optimum,
    rates,
    ratio,
    runs,
    solve,
    words,
)
from hybridlm.ablate.report.blocks import VERDICTS, Badge, Document, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts
from hybridlm.ablate.results import Results
from hybridlm.ablate.study import Claim

MEASURED = (ratio, front, rates, grid, solve, differences, optimum, knockouts)


def document(results: Results) -> Document:
    """The whole report. Without one finished trial it says what is missing, and nothing of results."""
    facts = Facts(results)
    verdicts = judge_all(results)
    measured = [part.section(facts) for part in MEASURED] if facts.arms else []
    sections = [_verdicts(verdicts), runs.arms(facts), *measured, runs.failures(facts), runs.reproduce(facts)]
    return Document(facts.study.name, facts.study.question, headline(verdicts, results), sections)


def headline(verdicts: Sequence[Verdict], results: Results) -> str:
    """How the claims fell, and how much of the study stands behind that."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    parts = [f"{counts[name]} {name}" for name in VERDICTS if counts[name]]
    told = (
        f"{words.plural(len(verdicts), 'claim')}: {words.listed(parts)}." if verdicts else "The study makes no claims."
    )
    missing = {one.key for one in results.missing}
    if missing:
        total = len({row["key"] for row in results.table} | missing)
        told += f" {len(missing)} of {words.plural(total, 'trial')} have no result: what follows is of the others."
    return told


def _verdicts(verdicts: Sequence[Verdict]) -> Section:
    if not verdicts:
        return Section("verdicts", "Verdicts", left_out="the study makes no claims.")
    rows = [
        [words.readable(one.claim.name), Badge(one.verdict), words.readable(one.said), bar(one.claim)]
        for one in verdicts
    ]
    about = "Each claim and its bar stood in the study file before the first run."
    return Section(
        "verdicts",
        "Verdicts",
        [Paragraph(about), Table("Claims", ["claim", "verdict", "what was found", "bar"], rows, stacked=True)],
    )


def bar(claim: Claim) -> str:
    """What the study file asks for."""
    parts = []
    if claim.at_least is not None:
        parts.append(f"{claim.metric} of {claim.arm} at least {claim.at_least:g}")
    if claim.at_most is not None:
        parts.append(f"{claim.metric} of {claim.arm} at most {claim.at_most:g}")
    if parts and claim.seeds is not None:
        parts.append(f"in at least {words.plural(claim.seeds, 'seed')}")
    if claim.over is not None:
        parts.append(f"{claim.metric} of {claim.arm} better than that of {claim.over} by more than {claim.by or 0:g}")
    if claim.argmin_between is not None:
        low, high = claim.argmin_between
        parts.append(f"{claim.metric} best between {low:g} and {high:g} of {claim.axis}")
    if claim.arms:
        parts.append(
            f"{claim.metric} better by more than {claim.increasing or 0:g} at each step of {', '.join(claim.arms)}"
        )
    needs = [f"needs: {', '.join(claim.needs)}"] * bool(claim.needs)
    return words.readable("; ".join([" ".join(parts[:1] + parts[1:]), *needs]))
