"""`kit`: the conformance kit over mixers and backends, in several processes: the worst error over its limit of each."""

from __future__ import annotations

import json
import os
import shlex
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import listed
from benchmarks.machine import describe
from hybridlm.ops.backend import BACKENDS, WITHOUT
from hybridlm.registry import mixers
from hybridlm.testing import Result, check_mixer, violations
from hybridlm.testing.check import MAY_REFUSE, numbers

EXAMPLE = "python -m benchmarks kit --backends auto,triton,vendor --jobs 8 --time-limit 120"
DTYPES = ("float32", "bfloat16", "float64", "float16")
TOGETHER = 6
"""Laws of a task: a mixer's tasks are spread over the processes."""


class Task(NamedTuple):
    """What a process does at a time."""

    mixer: str
    backend: str
    dtype: str
    laws: tuple[str, ...]

    @property
    def column(self) -> str:
        """Of the table."""
        return f"{self.backend}, {self.dtype}"


def add_options(parser: ArgumentParser) -> None:
    """What, on what, in how many processes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--mixers", default="", help="commas between; default all")
    parser.add_argument("--backends", default="auto", help=f"of {','.join(BACKENDS)}; default auto")
    parser.add_argument("--dtypes", default="float32,bfloat16", help=f"of {','.join(DTYPES)}; default float32,bfloat16")
    parser.add_argument("--laws", default="", help="such as C1,C5; default all")
    parser.add_argument("--without", default="", metavar="PACKAGES", help=f"sets {WITHOUT}: as if they were not there")
    parser.add_argument("--device", default=device, help="default here: %(default)s")
    parser.add_argument("--jobs", type=int, default=8, help="processes; 0: none of its own; default 8")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="what is not done by then is left out")
    parser.add_argument("--out", metavar="FOLDER", help="default runs/benchmarks/kit")


def main(args: Namespace) -> int:
    """1 if a law is broken, or if nothing was done."""
    began = time.monotonic()
    if args.without:
        os.environ[WITHOUT] = args.without  # of the processes that are started too
    found: dict[Task, list[Result] | str] = {}
    for task, results in _done(args, tasks(args)):
        found[task] = results
        _say(task, results, time.monotonic() - began)
        _write(args, found, began)
    wanted = len(tasks(args))
    print(f"{len(found)} of {wanted} tasks done in {time.monotonic() - began:.0f} s")
    good = all(not isinstance(results, str) and not _broken(task, results) for task, results in found.items())
    return 0 if found and good else 1


def tasks(args: Namespace) -> list[Task]:
    """The laws in groups from outside, so that every mixer has been looked at before the time is over."""
    names = listed(args.mixers, tuple(mixers.names()), "--mixers") or mixers.names()
    laws = listed(args.laws, tuple(numbers()), "--laws") or numbers()
    backends = listed(args.backends, BACKENDS, "--backends")
    dtypes = listed(args.dtypes, DTYPES, "--dtypes")
    groups = [tuple(laws[at : at + TOGETHER]) for at in range(0, len(laws), TOGETHER)]
    return [Task(name, b, d, group) for group in groups for b in backends for d in dtypes for name in names]


def _done(args: Namespace, todo: list[Task]) -> Iterator[tuple[Task, list[Result] | str]]:
    """Tasks and what they found, as they are done; after the time limit no more."""
    if not args.jobs:
        yield from ((task, check(task, args.device)) for task in todo)
        return
    pool = ProcessPoolExecutor(args.jobs, get_context("spawn"))
    try:
        futures: dict[Future, Task] = {pool.submit(check, task, args.device): task for task in todo}
        for future in as_completed(futures, args.time_limit):
            yield futures[future], future.result()
    except TimeoutError:
        print("the time limit came first")
        for process in list(pool._processes.values()):
            process.terminate()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def check(task: Task, device: str) -> list[Result] | str:
    """The results, or what went wrong."""
    torch.set_num_threads(1)
    try:
        return check_mixer(task.mixer, task.backend, getattr(torch, task.dtype), laws=task.laws, device=device)
    except Exception as error:
        traceback.print_exc(limit=4)
        return f"{type(error).__name__}: {str(error)[:200]}"


def _broken(task: Task, results: list[Result]) -> list[Result]:
    """A named backend may have nothing for a mixer."""
    return violations(results, MAY_REFUSE if task.backend == "auto" else (*MAY_REFUSE, "C15"))


def _say(task: Task, results: list[Result] | str, seconds: float) -> None:
    told = results if isinstance(results, str) else f"{len(results)} cases, {cell([(task, results)])}"
    print(f"{seconds:4.0f} s {task.mixer} {task.column} {task.laws[0]}..{task.laws[-1]}: {told}", flush=True)
    for result in [] if isinstance(results, str) else _broken(task, results)[:4]:
        print(f"       {str(result)[:230]}", flush=True)


# ------------------------------------------------------------------------------------------------------------ the table
def cell(parts: list[tuple[Task, list[Result] | str]]) -> str:
    """A mixer on a backend in a dtype: the worst error over its limit and its law, or what is broken."""
    errors = [results for _, results in parts if isinstance(results, str)]
    results = [result for _, results in parts if not isinstance(results, str) for result in results]
    broken = [result for task, results in parts if not isinstance(results, str) for result in _broken(task, results)]
    if errors or broken:
        laws = ", ".join(dict.fromkeys(result.law for result in broken))
        return "; ".join(filter(None, [f"{len(broken)} broken: {laws}" if broken else "", *errors]))
    if any(result.verdict == "refused" and result.law == "C15" for result in results):
        return "-"
    worst = max((r for r in results if r.limit and r.verdict == "passed"), key=lambda r: r.strain, default=None)
    return f"{worst.strain:.2f} ({worst.law})" if worst else "holds"


def _write(args: Namespace, found: dict[Task, list[Result] | str], began: float) -> None:
    """result.json, in the form that `report` reads."""
    columns = list(dict.fromkeys(task.column for task in tasks(args)))
    names = sorted({task.mixer for task in found})
    select: Callable[[str, str], list] = lambda name, column: [  # noqa: E731
        (task, results) for task, results in found.items() if task.mixer == name and task.column == column
    ]
    cases = {
        name: sum(len(r) for t, r in found.items() if t.mixer == name and not isinstance(r, str)) for name in names
    }
    lines = [
        [name, *(cell(part) if (part := select(name, column)) else "" for column in columns), f"{cases[name]:,}"]
        for name in names
    ]
    missing = [f"{t.mixer} {t.column} {t.laws[0]} to {t.laws[-1]}" for t in tasks(args) if t not in found]
    folder = Path(args.out or "runs/benchmarks/kit")
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "format": 1,
        "command": "kit",
        "command_line": shlex.join(["python", "-m", "benchmarks", *args.argv]),
        "title": "conformance kit" + (f", without {args.without}" if args.without else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "machine": describe(args.device),
        "titles": ["mixer", *columns, "cases"],
        "lines": lines,
        "missing": missing,
    }
    (folder / "result.json").write_text(json.dumps(about, indent=1) + "\n")
