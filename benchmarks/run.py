"""One run of a command: its rows, written after each of them, its clock, its progress, and the table at the end."""

from __future__ import annotations

import csv
import json
import shlex
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.machine import ceilings, describe
from benchmarks.picture import draw
from benchmarks.rows import Row, failures, records, table

FORMAT = 1


class Run:
    """rows: what was measured so far. error_is: what the column `error` says. args: as the command line gave them.

    findings: (what, what others found, what was found here), where rows are to answer a question.
    """

    latest: Run | None = None

    def __init__(self, args: Namespace, title: str, error_is: str):
        Run.latest = self
        self.args, self.title, self.error_is = args, title, error_is
        self.device: str = args.device
        self.rows: list[Row] = []
        self.findings: list[tuple[str, str, str]] = []
        self.began = time.monotonic()
        self.folder = Path(args.out or Path("runs/benchmarks") / args.command)
        self.earlier = (self.folder / "result.json").exists()
        self.console = Console(width=None if sys.stdout.isatty() else 200)
        self.machine = describe(self.device)
        self.ceilings = ceilings(self.device)
        said = f"{self.ceilings.flops / 1e12:.3g} TFLOP/s ({self.ceilings.dtype} matrix product), "
        self.say(f"{title}: on {self.where}; ceilings {said}{self.ceilings.bytes / 1e12:.3g} TB/s (copy)")

    @property
    def where(self) -> str:
        """The device in words."""
        name = "cuda:0" if self.device == "cuda" else self.device
        about = self.machine["devices"].get(name, "").partition(",")[0]
        return f"CPU, {about}" if name == "cpu" else about or name

    @property
    def measured(self) -> bool:
        """Whether any row has a time."""
        return any(row.seconds for row in self.rows)

    @property
    def kept(self) -> bool:
        """Whether the folder holds an earlier run, and this one nothing better."""
        return self.earlier and not self.measured

    @property
    def left(self) -> float:
        """Seconds until the limit; infinity without one."""
        return (self.args.time_limit or float("inf")) - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def add(self, *rows: Row) -> None:
        """Keep rows and write everything down: what comes next may fail."""
        self.rows += [row for row in rows if row not in self.rows]
        self.write()

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str], None]]:
        """A bar of `total` steps; call what is given with the name of the step that begins."""
        parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*parts, console=self.console, disable=not self.console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=total)
            done = iter(range(total + 1))

            def step(name: str) -> None:
                bar.update(task, description=name, completed=next(done, total))

            yield step

    def write(self) -> None:
        """JSON and CSV of all rows; those of an earlier run stay until something is measured."""
        if self.kept:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        told = records(self.rows)
        (self.folder / "result.json").write_text(json.dumps(self.about() | {"rows": told}, indent=1) + "\n")
        keys = dict.fromkeys(key for record in told for key in record)
        with (self.folder / "result.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(keys))
            writer.writeheader()
            writer.writerows(told)

    def about(self) -> dict:
        """All that is not a row."""
        return {
            "format": FORMAT,
            "command": self.args.command,
            "command_line": shlex.join(["python", "-m", "benchmarks", *self.args.argv]),
            "title": self.title,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began, 1),
            "machine": self.machine,
            "ceilings": {"flops": self.ceilings.flops, "bytes": self.ceilings.bytes, "dtype": self.ceilings.dtype},
            "error_is": self.error_is,
            "findings": self.findings,
        }

    def finish(self) -> int:
        """Everything once more, with a picture and the table. 1 if nothing was measured."""
        self.write()
        told = records(self.rows)
        titles, lines = table([record for record in told if record.get("median_ms")])
        shown = Table(*titles, title=f"{self.title}, {self.where}", caption=f"error: {self.error_is}")
        for line in lines:
            shown.add_row(*line)
        self.console.print(shown, markup=False) if lines else self.say("nothing was measured")
        if self.findings:
            answers = Table("what", "literature", "here")
            for line in self.findings:
                answers.add_row(*line)
            self.console.print(answers, markup=False)
        for text in failures(told):
            self.say(f"not measured: {text}")
        if self.kept:
            self.say(f"nothing written: {self.folder} holds an earlier run, which stays")
            return 1
        draw(told, f"{self.title}, {self.where}", self.folder / "result.png")
        self.say(f"written: {self.folder}/result.json, .csv, .png ({time.monotonic() - self.began:.0f} s)")
        return 0 if self.measured else 1


def reason(error: BaseException) -> str:
    """Why a contender has no times, on one line."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    place = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, NotImplementedError):  # hybridlm's UnsupportedError too: what cannot be had, in words
        return text[:300]
    return f"{type(error).__name__}: {text[:200]}{at}"
