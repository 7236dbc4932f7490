"""The picture of a run: a bar for each contender in each case, as tokens a second or as time."""

from __future__ import annotations

from pathlib import Path

MOST = 16
"""Cases in one picture; a run of more is drawn without labels on the bars."""


def draw(told: list[dict], title: str, path: Path) -> None:
    """Write a PNG of the rows that have times; nothing without any."""
    told = [record for record in told if record.get("median_ms")]
    if not told:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rate = all(record.get("tokens_per_s") for record in told)
    cases = list(dict.fromkeys(record["case"] for record in told))
    names = list(dict.fromkeys(_name(record) for record in told))
    figure, axes = plt.subplots(figsize=(max(6, 1.2 + 0.9 * len(cases) * min(len(names), 4) / 2), 4.5))
    for i, name in enumerate(names):
        mine = {record["case"]: record for record in told if _name(record) == name}
        values = [_value(mine.get(case), rate) for case in cases]
        places = [j + (i - (len(names) - 1) / 2) * 0.8 / len(names) for j in range(len(cases))]
        bars = axes.bar(places, values, 0.8 / len(names), label=name)
        if len(cases) * len(names) <= MOST:
            axes.bar_label(bars, [f"{value:,.3g}" if value else "" for value in values], fontsize=7)
    axes.set_xticks(
        range(len(cases)), cases, rotation=20 if len(cases) > 4 else 0, ha="right" if len(cases) > 4 else "center"
    )
    axes.set_ylabel("tokens/s" if rate else "ms")
    axes.set_yscale("log" if len(cases) > 4 else "linear")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _name(record: dict) -> str:
    return record["contender"]


def _value(record: dict | None, rate: bool) -> float:
    return 0.0 if record is None else record["tokens_per_s"] if rate else record["median_ms"]
