"""What `hybridlm doctor` prints: tables for a reader."""

from __future__ import annotations

from typing import Any


def show(about: dict[str, Any], device: str, dtype: str) -> None:
    """The whole page."""
    from hybridlm.train.console import Terminal

    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(f"hybridlm {about['hybridlm']}, Python {about['python']}, {about['platform']}", soft_wrap=True)
    core = (f"{name} {found or 'missing'}" for name, found in about["packages"].items())
    console.print(", ".join(core), soft_wrap=True)
    console.print(_table(["device", ""], [(one["name"], one["about"]) for one in about["devices"]]))
    console.print(_table(["optional", "found", "gives", ""], [_package(row) for row in about["optional"]]))
    _lines(console, [row["install"] for row in about["optional"] if row["install"]], "To install what is missing:")
    for row in about["known_bad"]:
        console.print(f"known trouble: {row['name']}: {row['what']} {row['source']}", soft_wrap=True, style="yellow")
    if about["layers"] is not None:
        rows = [row for layer in about["layers"] for row in _layer_rows(layer)]
        console.print(_table([f"{device}, {dtype}", "×", "when", "ops", "run on", "because"], rows))
        _lines(console, [_gain(row) for row in about["faster"]], "Faster would be:")
    if about["self_test"] is not None:
        console.print(_table(["self-test", "", "run on", "worst / limit", "at", "ms"], _test_rows(about["self_test"])))


def _package(row: dict[str, Any]) -> tuple[str, ...]:
    return row["package"], row["version"] or "-", row["gives"], row["trouble"] or row["note"]


def _gain(row: dict[str, Any]) -> str:
    return f"{', '.join(row['ops'])} by {row['package']}: {row['install']}"


def _lines(console: Any, lines: list[str], title: str) -> None:
    """Commands, one a line and never wrapped, so that they can be copied."""
    if lines:
        console.print(title)
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _layer_rows(layer: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each backend that a layer uses, with the ops that it runs."""
    same = layer["training"] == layer["decoding"]
    rows, name = [], (layer["block"], str(layer["count"]))
    for when in ("training",) if same else ("training", "decoding"):
        for backend, why in dict.fromkeys((op["backend"], op["why"]) for op in layer[when]):
            ops = dict.fromkeys(op["op"] for op in layer[when] if (op["backend"], op["why"]) == (backend, why))
            rows.append((*name, "always" if same else when, ", ".join(ops), backend, why))
            name = ("", "")
    return rows


def _test_rows(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Failures in full; the worst error over its limit, and the time of one call."""
    return [
        (
            row["op"],
            "PASS" if row["passed"] else "FAIL",
            row["backend"],
            f"{row['strain']:.2f}",
            row["detail"] or row["case"],
            "-" if row["milliseconds"] is None else f"{row['milliseconds']:.2f}",
        )
        for row in rows
    ]


def _table(columns: list[str], rows: list[tuple[str, ...]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
