"""A row of a table: one contender in one case, its times and what they amount to."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

GIB = 1 << 30


@dataclass
class Row:
    """case: what was done. contender: by whom; label: on which path of its own. ours: the one that others stand to.

    seconds:    of each timed call.
    tokens:     that a call reads or writes.
    flops:      that a call must do. floor: seconds below which the machine cannot come.
    error:      how far from the truth, as the run's `error_is` says.
    loss:       of the first step, where there is one.
    parameters: entries of the model. peak: bytes, above what others held.
    why:        why there are no times. notes: what else should be known of it.
    """

    case: str
    contender: str
    label: str = ""
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    flops: float = 0.0
    floor: float = 0.0
    error: float | None = None
    loss: float | None = None
    parameters: int | None = None
    peak: int | None = None
    why: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Seconds of a call; None without any."""
        return median(self.seconds) if self.seconds else None

    def record(self, reference: Row | None) -> dict[str, Any]:
        """The row as plain numbers; ratio: its time over that of `reference`, so that more is slower."""
        middle = self.median
        told = {"case": self.case, "contender": self.contender, "label": self.label, "ours": self.ours}
        told |= {"error": self.error, "loss": self.loss, "parameters": self.parameters, "peak_bytes": self.peak}
        told |= {"why": self.why, "notes": self.notes}
        if middle is None:
            return told
        return told | {
            "median_ms": middle * 1e3,
            "low_ms": min(self.seconds) * 1e3,
            "high_ms": max(self.seconds) * 1e3,
            "calls": len(self.seconds),
            "ratio": middle / reference.median if reference and reference.median else None,
            "tokens_per_s": self.tokens / middle if self.tokens else None,
            "tflops": self.flops / middle / 1e12 if self.flops else None,
            "floor_ms": self.floor * 1e3 if self.floor else None,
            "of_floor": self.floor / middle if self.floor else None,
        }


def records(rows: list[Row]) -> list[dict[str, Any]]:
    """All rows as numbers; each stands to the fastest of ours in its case."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.ours and row.seconds and (row.case not in best or row.median < best[row.case].median):
            best[row.case] = row
    return [row.record(best.get(row.case)) for row in rows]


# ------------------------------------------------------------------------------------------------------- as a table
def _number(form: str, factor: float = 1.0):
    return lambda value: "" if value is None else format(value * factor, form)


def _spread(record: dict) -> str:
    low, high = record.get("low_ms"), record.get("high_ms")
    return "" if low is None else f"{_ms(low)} .. {_ms(high)}"


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


COLUMNS = {  # title: text of a record's cell
    "case": lambda r: r["case"],
    "contender": lambda r: r["contender"] + (f" ({r['label']})" if r["label"] else ""),
    "ms": lambda r: _ms(r.get("median_ms")),
    "spread": _spread,
    "x ours": lambda r: _number(".2f")(r.get("ratio")),
    "tokens/s": lambda r: _number(",.0f")(r.get("tokens_per_s")),
    "TFLOP/s": lambda r: _number(".3g")(r.get("tflops")),
    "of floor": lambda r: _number(".0%")(r.get("of_floor")),
    "peak GiB": lambda r: _number(".3g", 1 / GIB)(r["peak_bytes"] or None),
    "error": lambda r: _number(".1e")(r["error"]),
    "loss": lambda r: _number(".4f")(r["loss"]),
    "parameters": lambda r: _number(".2f", 1e-6)(r["parameters"]) + (" M" if r["parameters"] else ""),
    "remark": lambda r: "; ".join(filter(None, [r["why"], *r["notes"]])),
}


def table(told: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells, without the columns in which nothing stands."""
    cells = {title: [text(record) for record in told] for title, text in COLUMNS.items()}
    kept = [title for title, column in cells.items() if any(column)]
    return kept, [list(line) for line in zip(*(cells[title] for title in kept), strict=True)]


def failures(told: list[dict]) -> list[str]:
    """Who has no times, and why: once for a contender and a reason, with the cases, or how many there are."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in told:
        if record["why"] and not record.get("median_ms"):
            cases.setdefault((record["contender"], record["why"]), []).append(record["case"])
    return [
        f"{who} ({listed[0] if len(listed) == 1 else f'{len(listed)} cases'}): {why}"
        for (who, why), listed in cases.items()
    ]
