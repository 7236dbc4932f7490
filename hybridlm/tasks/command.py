"""`hybridlm eval`: what a trained model answers to tasks with known answers, beside what guessing gets."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from hybridlm import checks, registry
from hybridlm.compose import strict_yaml
from hybridlm.compose.build import load
from hybridlm.compose.model import HybridLM
from hybridlm.compose.picture import suffix_of
from hybridlm.errors import DataError, SpecError
from hybridlm.files import check_target
from hybridlm.ops.backend import devices
from hybridlm.problems import Problems
from hybridlm.tasks import heat_map
from hybridlm.tasks.data import misfits
from hybridlm.tasks.difficulty import difficulty
from hybridlm.tasks.evaluate import CHUNK, Answers, cells, measure
from hybridlm.tasks.task import HELD_OUT, Samples, Task, make
from hybridlm.text import codec_of
from hybridlm.train.console import Terminal, digits

FEWEST = 20  # samples of a heat map's cell
COLUMNS = ("task", "difficulty", "accuracy", "95% interval", "solved", "guess", "loss")


def eval_command(
    run: str,
    tasks: list[str] | None = None,
    params: list[str] | None = None,
    samples: int = 1000,
    batch_size: int = 64,
    seed: int | None = None,
    chunk: int = CHUNK,
    device: str = "auto",
    json: bool = False,
    csv: bool = False,
    plot: str | None = None,
) -> None:
    """What a trained model answers to tasks with known answers. Samples are held out: no training saw them.

    A task that the run was trained on has the run's difficulty and seed, any other its defaults, unless told otherwise.
    Text is read with the run's tokenizer, or as bytes.

    Args:
        run: a run folder, or a folder that hl.save wrote.
        tasks: names, with commas or spaces between them; default: what the run was trained on.
        params: difficulty, as pairs=16 for every task that has it, or mqar.pairs=16 for one.
        samples: how many of each task. A heat map has as many in all, at least 20 a cell.
        batch_size: samples that are read at a time.
        seed: of the samples.
        chunk: samples longer than this are read in pieces of so many positions.
        device: cpu, cuda:0, ..., or auto, which is a GPU if there is one.
        json: print JSON instead of a table.
        csv: print CSV instead of a table.
        plot: draw accuracy by depth and length, of tasks that have both, into this file (.svg or .png).
    """
    _require_counts({"--samples": samples, "--batch-size": batch_size, "--chunk": chunk})
    if json and csv:
        raise DataError("--json and --csv: one of them, please")
    model, trained = _load(run, device), trained_on(run)
    asked = _tasks(run, _names(tasks, trained), params or [], trained)
    _require(model, run, asked)
    mapped = _mapped(plot, asked)
    how = {"batch_size": batch_size, "chunk": chunk}
    seeds = {task.name: _seed(task, trained) if seed is None else seed for task in asked}
    found = [measure(model, task, samples, seed=seeds[task.name], **how) for task in asked]
    _print_json(found) if json else _print_csv(found) if csv else _print_table(found)
    if plot:
        heat_map.draw(
            {task.name: (task.axes, _cells(model, task, samples, seeds[task.name], how)) for task in mapped}, plot
        )
        print(f"picture: {plot}", file=sys.stderr)


def _cells(model: HybridLM, task: Task, samples: int, seed: int, how: dict[str, int]) -> list[Answers]:
    """What is answered at each depth and length of a heat map, which share the samples."""
    places = list(cells(task))
    return [measure(model, cell, max(FEWEST, samples // len(places)), seed=seed, **how) for cell in places]


def _require_counts(given: dict[str, int]) -> None:
    """SpecError, with all that are none."""
    problems = Problems()
    for name, value in given.items():
        with problems.at():
            checks.whole(name, value)
    problems.refuse()


# -------------------------------------------------------------------------------------------------------- what is asked
def trained_on(run: str) -> dict[str, Any]:
    """{task, params, seed} of the task that a run was trained on; empty, if it was none or no run."""
    folder = Path(run)
    config = (folder.parent if folder.name == "model" else folder) / "config.yaml"
    said = strict_yaml.read(config) if config.is_file() else {}
    if said.get("task") not in registry.tasks:
        return {}
    data = said.get("data") or {}
    return {"task": said["task"], "params": data.get("params") or {}, "seed": data.get("seed", 0)}


def _names(tasks: list[str] | None, trained: dict[str, Any]) -> list[str]:
    """The tasks that were named, each once, or the run's own."""
    names = [name for word in tasks or [] for name in word.split(",") if name]
    if not names and trained and tasks is None:
        return [trained["task"]]
    if not names:
        raise DataError(f"tasks: which? --tasks mqar,needle, for example; known: {', '.join(registry.tasks.names())}")
    return list(dict.fromkeys(names))


def _tasks(run: str, names: list[str], words: list[str], trained: dict[str, Any]) -> list[Task]:
    """The tasks at their difficulties. SpecError: all that is wrong with any of them, or with what was said of them."""
    fields = {name: [field.name for field in difficulty(registry.tasks.get(name))] for name in names}
    given = {name: dict(trained["params"]) if trained.get("task") == name else {} for name in names}
    codec, problems, found = codec_of(run), Problems(), []
    _check_once(words, problems)
    for word in sorted(words, key=lambda word: "." in _path(word)):  # what is said of one task wins
        with problems.at():
            for name, field, value in _param(word, fields):
                given[name][field] = value
    for name in names:
        with problems.at():
            found.append(make(name, given[name], codec))
            Samples(found[-1], 0).sample(HELD_OUT, 0)  # now, and not behind the other tasks
    problems.refuse()
    return found


def _check_once(words: list[str], problems: Problems) -> None:
    """No field is given more than once."""
    for path in map(_path, words):
        given = [repr(word) for word in words if _path(word) == path]
        if len(given) > 1:
            problems.add("--params", f"{' and '.join(given)}; once, please")


def _path(word: str) -> str:
    return word.partition("=")[0]


def _param(word: str, fields: dict[str, list[str]]) -> Iterable[tuple[str, str, Any]]:
    """`pairs=16` or `mqar.pairs=16` -> (task, field, value) for whom it is."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise SpecError(f"--params: {word!r}; it must be field=value or task.field=value, such as mqar.pairs=16")
    task, dot, field = path.rpartition(".")
    if dot and task not in fields:
        raise SpecError(f"--params: {word!r}: {task!r} is none of the tasks asked for, which are {', '.join(fields)}")
    value = strict_yaml.load(f"value: {text}", name="--params")["value"]
    names = [task] if dot else [name for name in fields if field in fields[name]] or list(fields)
    return [(name, field, value) for name in names]


def _seed(task: Task, trained: dict[str, Any]) -> int:
    return trained["seed"] if trained.get("task") == task.name else 0


# ------------------------------------------------------------------------------------------------------------ the model
def _load(run: str, device: str) -> HybridLM:
    names = [name for name, _ in devices()]
    checks.choice("device", device, ["auto", *names])
    return load(run, device=(names[1:] or names)[0] if device == "auto" else device)


def _require(model: HybridLM, run: str, asked: list[Task]) -> None:
    """DataError, with all that keeps the model from any of the tasks."""
    if problems := [f"{run}: {problem}" for task in asked for problem in misfits(task, model.spec)]:
        raise DataError("\n".join(problems))


def _mapped(plot: str | None, asked: list[Task]) -> list[Task]:
    """The tasks that a heat map shows. DataError, before anything is measured, if it could not be drawn."""
    if plot is None:
        return []
    suffix_of(plot)
    check_target("plot", plot)
    if not (mapped := [task for task in asked if task.axes]):
        known = [name for name in registry.tasks.names() if registry.tasks.get(name).axes]
        raise DataError(f"plot: a heat map needs a depth and a length, and only {', '.join(known)} have them")
    return mapped


# --------------------------------------------------------------------------------------------------------- what is told
def _print_json(found: list[Answers]) -> None:
    import json

    said = [dataclasses.asdict(answers) for answers in found]
    finite = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in one.items()} for one in said]
    print(json.dumps(finite, indent=2))  # JSON has no NaN


def _print_csv(found: list[Answers]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Answers)]
    writer.writerow(names)
    for answers in found:
        row = dataclasses.asdict(answers) | {"difficulty": " ".join(_difficulty(answers))}
        writer.writerow(["" if row[name] is None else row[name] for name in names])


def _print_table(found: list[Answers]) -> None:
    table = Table(*COLUMNS, title=f"{found[0].samples:,} held-out samples of each", title_justify="left")
    for one in found:
        between = "" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
        numbers = ["" if n is None else digits(n) for n in (one.accuracy, one.solved, one.guess, one.loss)]
        table.add_row(one.task, "\n".join(_difficulty(one)), numbers[0], between, *numbers[1:])
    Terminal().print(table)


def _difficulty(answers: Answers) -> list[str]:
    return [f"{name}={value}" for name, value in answers.difficulty.items()]
