"""How a study goes: arms, what is done, at work, failed, steps a second and the time left; lines where no table can be.

Where the packs stand is read from the notes that they leave in their folders, so that it makes no difference what works
them off, and where.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybridlm.ablate.job import PROGRESS, Outcome, Pack, pack_folder
from hybridlm.ablate.results import load
from hybridlm.train.console import Terminal, digits

if TYPE_CHECKING:
    from hybridlm.ablate.study import Study

COLORS = {"failed": "red", "damaged": "yellow", "stopped": "yellow", "kept": "yellow", "done": "green"}
OFTEN = 1.0  # seconds between two looks at the folders


@dataclass
class Row:
    """One arm. trials: all; done, failed: of these; best: the best mean of the score over seeds, of one lr."""

    trials: int
    done: int = 0
    failed: int = 0
    best: float | None = None


class Board:
    """The live table of a study that runs. A context manager: the table stands while it is open."""

    def __init__(self, study: Study, folder: Path, console: Terminal | None = None) -> None:
        self.study, self.folder = study, folder
        self.console = console or Terminal(stderr=True, highlight=False)
        self.work = {arm.name: arm.cost.flops_train * study.train.steps for arm in study.arms}  # of a trial
        self.started, self.looked, self.finished = time.monotonic(), 0.0, 0.0
        self.packs: dict[str, Pack] = {}
        self.running: Collection[str] = ()
        self._live: Live | None = None
        self._look()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self.table)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, pack: Pack) -> None:
        """A pack is started."""
        self.packs[pack.key] = pack

    def end(self, pack: Pack, outcome: Outcome) -> None:
        """A pack has ended."""
        if self.packs.pop(pack.key, None) is None or outcome.ended != "done":
            return
        self.finished += self.work[pack.arm] * len(pack.trials)
        self._look()
        row = self.rows[pack.arm]
        if self._live is None:
            self.tell(f"{pack}; {row.done} of {row.trials}{_left(self.seconds_left())}", "done")

    def tell(self, line: str, title: str) -> None:
        """A line above the table."""
        self.console.print(Text(f"{title}: {line}", style=COLORS[title]), soft_wrap=True)

    def show(self, running: Collection[str]) -> None:
        """Look again, if it is time. running: keys of the packs at work."""
        self.running = list(running)
        if time.monotonic() - self.looked > OFTEN:
            self._look()

    def _look(self) -> None:
        results = load(self.study, self.folder)
        self.looked, self.rows = time.monotonic(), {}
        for arm in self.study.arms:
            rows = results.rows(arm.name)
            missing = [one for one in results.missing if one.arm == arm.name]
            best = results.best_lr(arm.name)
            row = Row(len(rows) + len(missing), len(rows), sum("crashed" in one.why for one in missing))
            row.best = None if best is None else results.means(arm.name)[best]
            self.rows[arm.name] = row
        self.score = results.score
        self.notes = {key: note for key in self.packs if (note := self._note(key))}

    def _note(self, key: str) -> dict[str, Any]:
        try:
            return json.loads((pack_folder(self.folder, key) / PROGRESS).read_text())
        except (OSError, ValueError):
            return {}  # none yet, or it is being written

    def seconds_left(self) -> float | None:
        """By the FLOPs that are done and those that are left; trials that end early make it less. None: who knows."""
        begun = sum(self._done(key, note, note["first"]) for key, note in self.notes.items())
        so_far = sum(self._done(key, note, 0) for key, note in self.notes.items())
        rate = (self.finished + begun) / (time.monotonic() - self.started)
        left = sum(self.work[name] * (row.trials - row.done - row.failed) for name, row in self.rows.items()) - so_far
        return max(0.0, left) / rate if rate > 0 else None

    def _done(self, key: str, note: dict[str, Any], since: int) -> float:
        pack = self.packs[key]
        return self.work[pack.arm] * note["members"] * (note["step"] - since) / note["steps"]

    def table(self) -> Table:
        """What the terminal shows now."""
        left = self.seconds_left()
        title = f"{self.study.name}: {self.study.question}"
        table = Table(title=title, title_justify="left", caption=f"time left: {_clock(left)}", caption_justify="left")
        for name in ("arm", "done", "running", "failed", "step", "steps/s", f"best {self.score}"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for name, row in self.rows.items():
            notes = [self.notes.get(key, {}) for key, pack in self.packs.items() if pack.arm == name]
            running = sum(len(self.packs[key].trials) for key in self.running if self._is(key, name))
            steps, rate = _pace([note for note in notes if note])
            best = "" if row.best is None else digits(row.best)
            failed = Text(str(row.failed), style="red") if row.failed else ""
            table.add_row(name, f"{row.done}/{row.trials}", str(running or ""), failed, steps, rate, best)
        return table

    def _is(self, key: str, arm: str) -> bool:
        return key in self.packs and self.packs[key].arm == arm


def _pace(notes: list[dict[str, Any]]) -> tuple[str, str]:
    """The steps of the packs at work, and how many all of their members take a second."""
    if not notes:
        return "", ""
    rate = sum((n["step"] - n["first"]) * n["members"] / max(n["seconds"], 1e-3) for n in notes)
    return " ".join(f"{note['step']}" for note in notes) + f"/{notes[0]['steps']}", digits(rate)


def _left(seconds: float | None) -> str:
    return "" if not seconds else f"; about {_clock(seconds)} left"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
