"""The data of a study and the models that read it: whether they go together, how long it is, what guessing gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridlm.ablate.arms import Arm
from hybridlm.ablate.parts import Data
from hybridlm.errors import DataError, SpecError
from hybridlm.problems import Problems
from hybridlm.tasks.data import misfits
from hybridlm.tasks.task import HELD_OUT, TRAINING, Samples, Task, make
from hybridlm.train.corpus import corpus_bytes
from hybridlm.train.data import TextData

STDLIB = "stdlib"


def text_path(data: Data) -> str | None:
    """What TextData takes for it: None is the standard library."""
    return None if data.text == STDLIB else data.text


def task_of(data: Data) -> Task:
    """The task at its difficulty. SpecError: all that is wrong with it."""
    return make(data.task, dict(data.params))


def length_of(data: Data) -> int:
    """Positions of a sample. SpecError: as task_of."""
    return data.context if data.text else task_of(data).length


def guess_of(data: Data) -> float | None:
    """The accuracy of the best guess; None of text, of numbers, and where the task itself is wrong."""
    try:
        task = task_of(data) if data.task else None
    except SpecError:
        return None
    return task.guess() if task and task.kind == "tokens" else None


def check_fit(path: str, data: Data, arms: Sequence[Arm], problems: Problems) -> None:
    """Data that is there, and that every arm can read and answer; what is not is among the problems."""
    try:
        reader: Any = _drawn(task_of(data)) if data.task else _text(data)
    except (SpecError, DataError) as error:
        problems.add(path, str(error))
        return
    wrong: dict[str, list[str]] = {}
    for arm in arms:
        for reason in misfits(reader, arm.spec) if data.task else _text_misfits(reader, arm):
            wrong.setdefault(reason, []).append(arm.name)
    for reason, names in wrong.items():
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        problems.add(path, f"{who}: {reason}")


def _drawn(task: Task) -> Task:
    """The task, of which there are samples to train on and others to test."""
    for family in (TRAINING, HELD_OUT):
        Samples(task, 0).sample(family, 0)
    return task


def _text(data: Data) -> TextData:
    corpus_bytes(text_path(data))
    return TextData(path=text_path(data), context=data.context, tokenizer=data.tokenizer)


def _text_misfits(reader: TextData, arm: Arm) -> list[str]:
    try:
        reader.require(arm.spec, "the model")
    except DataError as error:
        return [str(error)]
    return []
