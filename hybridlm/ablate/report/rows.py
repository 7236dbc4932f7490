"""Every finished trial as a line: results.csv for spreadsheets, results.jsonl with curves and knock-outs.

Names stand in both as the study has them. A number is written with all its digits; an empty field, or null, is one
that there is not.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from hybridlm.ablate.results import Results

NESTED = ("curve", "knockouts")
FIRST = ("arm", "seed", "lr", "key", "best_lr")


def records(results: Results) -> list[dict[str, Any]]:
    """The rows of the table, each with the arm's coordinates and costs, and whether its learning rate is the best."""
    arms = {arm.name: arm for arm in results.study.arms}
    best = {name: results.best_lr(name) for name in {row["arm"] for row in results.table}}
    return [_record(row, arms[row["arm"]], row["lr"] == best[row["arm"]]) for row in results.table]


def _record(row: Mapping[str, Any], arm: Any, best: bool) -> dict[str, Any]:
    about = {name: row[name] for name in FIRST[:-1]} | {"best_lr": best}
    axes = {f"axis.{axis}": value for axis, value in arm.coordinates.items()}
    costs = {f"cost.{name}": getattr(arm.cost, name) for name in arm.cost.__dataclass_fields__}
    return about | axes | costs | {"cost.residual": arm.residual} | {k: v for k, v in row.items() if k not in about}


def csv_text(results: Results) -> str:
    """A line a trial, without curves and knock-outs; texts in quotes, numbers without."""
    rows = [{k: v for k, v in row.items() if k not in NESTED} for row in records(results)]
    names = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return int(value) if isinstance(value, bool) else value


def jsonl_text(results: Results) -> str:
    """An object a line, everything in it; NaN as null."""
    return "".join(json.dumps(_jsonable(row), ensure_ascii=True, allow_nan=False) + "\n" for row in records(results))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
