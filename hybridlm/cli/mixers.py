"""`hybridlm mixers`: every mixer and MLP that a model file may name here."""

from __future__ import annotations

from typing import Any

WIDTH = 64  # the width at which a mixer is asked what its state does


def list_mixers(json: bool = False) -> None:
    """Every registered mixer and MLP: letter, what it is, what its state does, where it comes from.

    A package whose part does not import is listed with the reason; the others work.

    Args:
        json: print a JSON list of {kind, name, letter, summary, recurrent, state, rolls_back, source, error}.
    """
    rows = catalogue()
    if json:
        import json as writer

        print(writer.dumps(rows, indent=2, ensure_ascii=False))
        return
    _print_tables(rows)


def catalogue() -> list[dict[str, Any]]:
    """One mapping a registered name.

    kind: mixer or mlp. letter: in the default alphabet, or null. state: "grows" with the context, is "bounded", or
    there is "none". rolls_back: whether the last tokens can be forgotten exactly. error: why it does not work, or null.
    """
    from hybridlm.registry import mixers, mlps

    return [_row(registry.kind, entry) for registry in (mixers, mlps) for entry in registry.listing()]


def _row(kind: str, entry: Any) -> dict[str, Any]:
    row = {"kind": kind, "name": entry.name, "letter": None, "summary": "", "recurrent": None, "state": None}
    row |= {"rolls_back": None, "source": entry.source, "error": entry.error}
    if entry.part is None:
        return row
    try:
        return row | (_mixer(entry.part) if kind == "mixer" else _mlp(entry.part))
    except Exception as error:  # other people's code: it is named, and the rest is still listed
        return row | {"error": f"it does not keep the contract: {error!r}"}


def _mlp(part: type) -> dict[str, Any]:
    from hybridlm.compose.docstrings import first_sentence

    part.cost(part.Config().resolve(WIDTH), WIDTH)
    return {"summary": first_sentence(part.__doc__)}


def _mixer(part: type) -> dict[str, Any]:
    cost = part.cost(part.Config().resolve(WIDTH), WIDTH)
    small, large = (cost.state(length, 4).total for length in (1 << 39, 1 << 40))
    about = _mlp(part) | {"letter": part.letter or None, "recurrent": part.recurrent, "rolls_back": part.rolls_back}
    return about | {"state": "grows" if large > small else "bounded" if large else "none"}


def _print_tables(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from hybridlm.train.console import Terminal

    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for kind, columns in {
        "mixer": ["mixer", "letter", "what it is", "recurrent", "state", "rolls back", "from"],
        "mlp": ["MLP", "what it is", "from"],
    }.items():
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in (row for row in rows if row["kind"] == kind):
            cells = [row["name"], row["letter"] or "", row["summary"], _yes(row["recurrent"]), row["state"] or ""]
            cells += [_yes(row["rolls_back"]), row["source"]]
            cells = cells if kind == "mixer" else [cells[0], cells[2], cells[-1]]
            cells = [escape(cell) for cell in cells]
            if row["error"]:
                cells[columns.index("what it is")] = f"[red]{escape(row['error'])}[/]"
            table.add_row(*cells)
        console.print(table)


def _yes(flag: bool | None) -> str:
    return "yes" if flag else ""
