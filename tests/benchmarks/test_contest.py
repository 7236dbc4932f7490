"""Contenders take turns; who fails, or has no room, does not stop the others."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from benchmarks.contest import AbsentError, Contender, Entry, Work, contest
from benchmarks.machine import Ceilings
from benchmarks.run import Run

WORK = Work("case", tokens=10, flops=2e9, bytes=0.0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.run.ceilings", lambda device: Ceilings(1e11, 1e10, "float32"))
    options = {
        "command": "train",
        "argv": [],
        "device": "cpu",
        "out": str(tmp_path),
        "time_limit": None,
        "budget": None,
    }
    return Run(Namespace(**options, rounds=3, calls=2, warmup=1), "title", "nothing")


def contender(name: str, log: list[str], make=None, **entry) -> Contender:
    def work() -> None:
        log.append(name)

    return Contender(name, make or (lambda: Entry(work, **entry)))


def test_turns_alternate(run):
    log: list[str] = []
    contest(run, WORK, [contender("a", log), contender("b", log)])
    assert "".join(log) == "aaabbb" * 3  # one call warms up, two are timed
    assert [len(row.seconds) for row in run.rows] == [6, 6]
    assert run.rows[0].floor == pytest.approx(0.02)


def test_a_block_opens_and_closes_also_when_it_fails(run):
    log: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    entry = Entry(fail, enter=lambda: log.append("enter"), leave=lambda: log.append("leave"))
    contest(run, WORK, [Contender("a", lambda: entry), contender("b", log)])
    assert log == ["enter", "leave", *["b"] * 9]
    assert run.rows[0].why.startswith("ValueError: no")
    assert len(run.rows[1].seconds) == 6


def test_what_has_no_room_is_timed_alone(run):
    log: list[str] = []
    tried: list[int] = []

    def make() -> Entry:
        tried.append(len(log))
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError("full")
        return Entry(lambda: log.append("a"))

    contest(run, WORK, [contender("a", log, make), contender("b", log)])
    assert "".join(log) == "b" * 9 + "a" * 9
    assert run.rows[0].notes == ["timed alone: no room beside the others"]
    assert not run.rows[0].why


def test_what_never_has_room_says_so(run):
    def make() -> Entry:
        raise torch.cuda.OutOfMemoryError("full")

    contest(run, WORK, [Contender("a", make)])
    assert run.rows[0].why == "out of memory, also alone"


def test_the_check_comes_before_the_times(run):
    log: list[str] = []

    def check() -> tuple[float, float]:
        log.append("check")
        return 1e-3, 2.0

    contest(run, WORK, [contender("a", log, label="fast path", parameters=7, notes=["tied"], check=check)])
    (row,) = run.rows
    assert log[0] == "check"
    assert log.count("check") == 1
    assert (row.error, row.loss, row.label, row.parameters, row.notes) == (1e-3, 2.0, "fast path", 7, ["tied"])


def test_what_fills_the_memory_is_timed_after_the_others(run):
    log: list[str] = []
    first = contender("a", log)
    first.alone = True
    contest(run, WORK, [first, contender("b", log)])
    assert "".join(log) == "b" * 9 + "a" * 9
    assert [row.contender for row in run.rows if row.notes == ["timed alone"]] == ["a"]


def test_what_does_not_exist_has_no_row(run):
    def make() -> Entry:
        raise AbsentError("there is no such backend")

    log: list[str] = []
    contest(run, WORK, [Contender("a", make), contender("b", log)])
    assert [row.contender for row in run.rows] == ["b"]


def test_a_budget_says_how_many_calls_a_turn_has(run):
    """Slow ones three, quick ones as many as fit."""
    run.args.budget, run.args.rounds = 0.5, 1
    slow, quick = (Entry(print, seconds=lambda device, s=s: s) for s in (1.0, 0.05))
    contest(run, WORK, [Contender("slow", lambda: slow), Contender("quick", lambda: quick)])
    assert [len(row.seconds) for row in run.rows] == [3, 10]
