"""`report`: the tables of benchmarks/README.md, written anew from the JSON files of runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.rows import failures, table

EXAMPLE = "python -m benchmarks report runs/benchmarks/*"
README = Path(__file__).with_name("README.md")
KIT = (
    "The worst error over its limit, at most 1 where all laws hold, and its law. -: none of its ops has such a backend."
)
OPEN, CLOSE = "<!-- {} -->", "<!-- end of {} -->"


def add_options(parser: ArgumentParser) -> None:
    """Which runs, and where to."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders, or result.json files")
    parser.add_argument(
        "--readme", default=str(README), help="the file that is rewritten; default benchmarks/README.md"
    )


def main(args: Namespace) -> int:
    """Each command's section gets the given runs of it, the newest first; other sections stay as they are."""
    found = [read(Path(run)) for run in args.runs]
    path = Path(args.readme)
    text = path.read_text(encoding="utf-8")
    for command in dict.fromkeys(about["command"] for about in found):
        runs = sorted((about for about in found if about["command"] == command), key=lambda about: about["date"])
        text = replaced(text, command, "\n\n".join(section(about) for about in reversed(runs)))
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {', '.join(dict.fromkeys(about['command'] for about in found))}")
    return 0


def read(path: Path) -> dict:
    """A run's JSON. ValueError: there is none."""
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no result.json of a run")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: no result.json of a run: {error}") from error


def replaced(text: str, command: str, body: str) -> str:
    """The README with a command's section exchanged. ValueError: it has no place for it."""
    begin, end = OPEN.format(command), CLOSE.format(command)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the README has no '{begin}' with '{end}' after it")
    return f"{before}{begin}\n\n{body}\n\n{end}{after}"


def section(about: dict) -> str:
    """A run in Markdown: what, where, when, how, and its table."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["packages"].items() if number)
    where = machine["devices"].get("cuda:0" if machine["device"] == "cuda" else machine["device"], machine["device"])
    head = f"**{about['title']}.** {where}; {about['date'][:10]}; python {machine['python']}, {versions}."
    return "\n\n".join([head, *(_laws(about) if "lines" in about else _times(about))])


def _laws(about: dict) -> list[str]:
    """Of the kit: a number, and the law whose case came nearest to its limit, for each mixer."""
    told = [
        f"    {about['command_line']}",
        markdown([about["titles"], ["---"] * len(about["titles"]), *about["lines"]]),
        KIT,
    ]
    return told + (["Not done: " + "; ".join(about["missing"]) + "."] if about["missing"] else [])


def _times(about: dict) -> list[str]:
    """Of everything else: what is measured, a row each, and what follows from it."""
    rates = about["ceilings"]
    titles, lines = table([record for record in about["rows"] if record.get("median_ms")])
    rows = [titles, ["---"] * len(titles), *lines]
    told = [
        f"Ceilings: {rates['flops'] / 1e12:.3g} TFLOP/s ({rates['dtype']}), {rates['bytes'] / 1e12:.3g} TB/s.",
        f"    {about['command_line']}",
        markdown(rows),
        f"error: {about['error_is']}.",
    ]
    if about.get("findings"):
        told.append(markdown([["what", "literature", "here"], ["---"] * 3, *about["findings"]]))
    missing = failures(about["rows"])
    if missing:
        told.append("Not measured: " + "; ".join(missing) + ".")
    return told


def markdown(rows: list[list[str]]) -> str:
    """A table, its first two rows the titles and the line under them."""
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
