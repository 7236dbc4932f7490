"""Every mixer by every law: the worst error beside its limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from hybridlm.testing.check import numbers, violations
from hybridlm.testing.laws import LAWS
from hybridlm.testing.result import Result

STYLE = {"passed": "green", "refused": "yellow", "failed": "bold red"}
SIDE_BY_SIDE, LAWS_A_ROW = 3, 12  # subjects whose columns fit beside the titles of the laws; laws that fit beside names


def report(results: Iterable[Result] | Mapping[str, Iterable[Result]], *, console: Console | None = None) -> None:
    """Print results: a list of one subject, or {name: list} of several, one column each; many of them one row each.

    A cell shows the case that came nearest to its limit: error / limit, in a row the number that this is. "holds" where
    there is no number to show.
    """
    columns = results if isinstance(results, Mapping) else {"error / limit": results}
    columns = {name: list(found) for name, found in columns.items()}
    present = {r.law for found in columns.values() for r in found}
    laws = [number for number in numbers() if number in present]
    console = console or Console()
    for table in [_by_law(columns, laws)] if len(columns) <= SIDE_BY_SIDE else _by_subject(columns, laws):
        console.print(table)
    for name, found in columns.items():
        for r in violations(found)[:20]:
            console.print(f"{name}: {r}", style="red", markup=False)


def _by_law(columns: Mapping[str, list[Result]], laws: list[str]) -> Table:
    table = Table("law", "what must hold", *columns, title="Laws of state", title_justify="left")
    for number in laws:
        table.add_row(number, LAWS[number].title, *(cell(found, number) for found in columns.values()))
    return table


def _by_subject(columns: Mapping[str, list[Result]], laws: list[str]) -> Iterable[Table]:
    """Tables that are narrow enough for a terminal."""
    for at in range(0, len(laws), LAWS_A_ROW):
        some = laws[at : at + LAWS_A_ROW]
        table = Table("worst / limit", *some, title="Laws of state", title_justify="left", padding=(0, 0))
        for name, found in columns.items():
            table.add_row(name, *(short_cell(found, number) for number in some))
        yield table


def cell(results: Iterable[Result], number: str) -> str:
    """The nearest to failing of one law."""
    if (worst := _worst(results, number)) is None:
        return "-"
    text = f"{worst.error:.1e} / {worst.limit:.1e}" if worst.verdict != "refused" and worst.limit else worst.verdict
    text = "holds" if text == "passed" else text
    return f"[{STYLE[worst.verdict]}]{text}[/]"


def short_cell(results: Iterable[Result], number: str) -> str:
    """The same in five characters."""
    if (worst := _worst(results, number)) is None:
        return "-"
    text = {"refused": "ref.", "failed": "FAIL", "passed": "holds"}[worst.verdict]
    text = f"{worst.strain:.2f}" if worst.verdict == "passed" and worst.limit else text
    return f"[{STYLE[worst.verdict]}]{text}[/]"


def _worst(results: Iterable[Result], number: str) -> Result | None:
    found = [r for r in results if r.law == number]
    return max(found, key=lambda r: (r.verdict == "failed", r.verdict == "refused", r.strain), default=None)
