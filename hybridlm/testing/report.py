"""Every mixer by every law: the worst error beside its limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from hybridlm.testing.check import numbers, violations
from hybridlm.testing.laws import LAWS
from hybridlm.testing.result import Result

STYLE = {"passed": "green", "refused": "yellow", "failed": "bold red"}


def report(results: Iterable[Result] | Mapping[str, Iterable[Result]], *, console: Console | None = None) -> None:
    """Print results: a list of one subject, or {name: list} of several, one column each.

    A cell shows the case that came nearest to its limit: error / limit. "holds" where there is no number to show.
    """
    columns = results if isinstance(results, Mapping) else {"error / limit": results}
    columns = {name: list(found) for name, found in columns.items()}
    table = Table("law", "what must hold", *columns, title="Laws of state", title_justify="left")
    present = {r.law for found in columns.values() for r in found}
    for number in [number for number in numbers() if number in present]:
        table.add_row(number, LAWS[number].title, *(cell(found, number) for found in columns.values()))
    console = console or Console()
    console.print(table)
    for name, found in columns.items():
        for r in violations(found)[:20]:
            console.print(f"{name}: {r}", style="red", markup=False)


def cell(results: Iterable[Result], number: str) -> str:
    """The nearest to failing of one law."""
    found = [r for r in results if r.law == number]
    if not found:
        return "-"
    worst = max(found, key=lambda r: (r.verdict == "failed", r.verdict == "refused", r.strain))
    text = f"{worst.error:.1e} / {worst.limit:.1e}" if worst.verdict != "refused" and worst.limit else worst.verdict
    text = "holds" if text == "passed" else text
    return f"[{STYLE[worst.verdict]}]{text}[/]"
