"""Contenders on the same work in turns: A B C A B C, so that a slow minute of the machine is everyone's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.rows import Row
from benchmarks.run import Run, reason
from benchmarks.timing import fitting, forget_peak, free, held, peak, seconds


class NoTimeError(Exception):
    """The time limit of the run is near."""


class AbsentError(Exception):
    """What was asked for does not exist here: no row at all."""


@dataclass
class Entry:
    """A contender that is built and stands ready.

    work:    one timed call. enter, leave: what a block of calls needs besides, and gives back.
    check:   the error, and the loss of a first step or None; called once, before anything is timed.
    """

    work: Callable[[], object]
    label: str = ""
    parameters: int | None = None
    notes: list[str] = field(default_factory=list)
    enter: Callable[[], None] = lambda: None
    leave: Callable[[], None] = lambda: None
    check: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    seconds: Callable[[str], float] | None = None


@dataclass
class Contender:
    """name: who. make: builds the entry, and may raise. ours: whether others are measured against it.

    alone: it fills the memory, so that it is timed after the others.
    """

    name: str
    make: Callable[[], Entry]
    ours: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Work:
    """What a case is: its name, the tokens of a call, the FLOPs, bytes and seconds that no version can do without."""

    case: str
    tokens: int
    flops: float
    bytes: float
    seconds: float = 0.0


def contest(run: Run, work: Work, contenders: Sequence[Contender], cycles: bool = True) -> None:
    """Time all contenders in `run.args.rounds` rounds of `run.args.calls` calls; a row each, failures too.

    What has no room beside the others is timed alone afterwards, and says so. cycles: see `timing.free`.
    """
    rows = {c.name: _row(run, work, c) for c in contenders}
    crowded = [contender for contender in contenders if contender.alone]
    crowded += _turns(run, work, [contender for contender in contenders if not contender.alone], rows, cycles)
    free(run.device, cycles)
    for contender in crowded:
        _alone(run, contender, rows[contender.name], cycles)
    run.add(*rows.values())
    for row in rows.values():
        if row.median:
            run.say(f"{row.case}: {row.contender} ({row.label}): {row.median * 1e3:.4g} ms, error {row.error}")


def _turns(run: Run, work: Work, contenders: Sequence[Contender], rows: dict[str, Row], cycles: bool):
    """Every contender in each round; those that had no room. A row of what does not exist is taken out."""
    entries: dict[str, Entry] = {}
    crowded: list[Contender] = []
    with run.progress(run.args.rounds * len(contenders)) as step:
        for _ in range(run.args.rounds):
            for contender in contenders:
                step(f"{work.case}: {contender.name}")
                row = rows.get(contender.name)
                if row is None or row.why:
                    continue
                try:
                    if _block(run, contender, row, entries, cycles) == "crowded":
                        crowded.append(contender)
                except AbsentError:
                    del rows[contender.name]
    return crowded


def _row(run: Run, work: Work, contender: Contender) -> Row:
    floor = max(work.seconds, run.ceilings.floor(work.flops, work.bytes))
    return Row(work.case, contender.name, ours=contender.ours, tokens=work.tokens, flops=work.flops, floor=floor)


def _alone(run: Run, contender: Contender, row: Row, cycles: bool) -> None:
    """All rounds with nobody else in memory."""
    entries: dict[str, Entry] = {}
    row.why, row.seconds, row.peak = "", [], None
    for _ in range(run.args.rounds):
        if not row.why and _block(run, contender, row, entries, cycles) == "crowded":
            row.why = "out of memory, also alone"
    if row.seconds:
        row.notes = [*row.notes, "timed alone" if contender.alone else "timed alone: no room beside the others"]
    entries.clear()
    free(run.device, cycles)


def _block(run: Run, contender: Contender, row: Row, entries: dict[str, Entry], cycles: bool) -> str:
    """One block of calls into the row. "crowded": it had no room."""
    before = held(run.device)
    try:
        if run.left < 0:
            raise NoTimeError("the time limit came first")
        if not entries.get(contender.name):
            forget_peak(run.device)
            entries[contender.name] = _ready(run, contender, row)
        _timed(run, entries[contender.name], row)
        row.peak = row.peak or max(0, peak(run.device) - before)
    except torch.cuda.OutOfMemoryError:
        row.why = "out of memory"
    except AbsentError:
        raise
    except NoTimeError as stop:
        row.why = "" if row.seconds else str(stop)
        row.notes += [str(stop)] if row.seconds else []
    except Exception as error:  # a contender that fails must not end the others
        row.why = reason(error)
    failed = bool(row.why)
    if failed:
        entries.pop(contender.name, None)
        run.say(f"{row.case}: {contender.name}: {row.why}")
    free(run.device, cycles)
    run.add(row)
    return "crowded" if row.why == "out of memory" else ""


def _ready(run: Run, contender: Contender, row: Row) -> Entry:
    """Build and check it, and write down what it says of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = contender.make()
        row.parameters = entry.parameters
        row.error, row.loss = entry.check()
    row.label, row.notes = entry.label, entry.notes
    return entry


def _timed(run: Run, entry: Entry, row: Row) -> None:
    """A block: warm-up, then calls on their own, as many as are asked for or as fit into the budget."""
    clock = entry.seconds or (lambda device: seconds(entry.work, device))
    fresh = not row.seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry.enter()
        try:
            for _ in range(run.args.warmup if fresh else 1):
                entry.work()
            if run.args.budget:
                times = fitting(lambda: clock(run.device), run.args.budget)
            else:
                times = [clock(run.device) for _ in range(run.args.calls)]
        finally:
            entry.leave()
    row.seconds += times
    row.label, row.notes = entry.label, entry.notes
