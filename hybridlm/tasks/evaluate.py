"""How a trained model answers a task: its held-out samples, read in one call or, if they are long, in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.model import HybridLM
from hybridlm.errors import SpecError
from hybridlm.tasks.difficulty import difficulty
from hybridlm.tasks.metrics import TaskScore, asked
from hybridlm.tasks.proportion import wilson
from hybridlm.tasks.task import HELD_OUT, Samples, Task
from hybridlm.train.samples import Batch, inputs_of

CHUNK = 8192  # positions that a model reads in one call
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PARTS = (8, 4, 2, 1)  # a heat map's lengths are an eighth, a quarter, a half and all of the task's


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came out: loss in nats, or the squared error; of tokens accuracy, its 95% interval, solved; and the guess.

    The interval (Wilson) counts a sample as one trial: answers in a sample hang together, and it is rather too wide.
    """

    task: str
    difficulty: dict[str, Any]
    samples: int
    seed: int
    loss: float
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    solved: float | None = None
    guess: float


def measure(
    model: HybridLM, task: Task, samples: int, *, seed: int = 0, batch_size: int = 64, chunk: int = CHUNK
) -> Answers:
    """The first `samples` held-out samples of a task, answered by a model on the device that it is on.

    chunk: longer samples are read in pieces of so many positions, which takes less memory and changes nothing else.
    """
    drawn, score = Samples(task, seed), TaskScore(model.spec, task)
    device, mode = next(model.parameters()).device, model.training
    score.to(device)
    model.eval()
    for start in range(0, samples, batch_size):
        batch = drawn.batch(HELD_OUT, range(start, min(start + batch_size, samples)))
        batch = {name: values.to(device) for name, values in batch.items()}
        score.add(read(model, batch, chunk), batch["targets"])
    model.train(mode)
    found = {name: float(value) for name, value in score.measures().items()} | {"guess": task.guess()}
    if "accuracy" in found:
        found["low"], found["high"] = wilson(found["accuracy"], samples)
    return Answers(task=task.name, difficulty=said(task), samples=samples, seed=seed, **found)


@torch.no_grad()
def read(model: HybridLM, batch: Batch, chunk: int) -> Tensor:
    """(n, v) the model's logits, or numbers, at the asked positions of a batch, row by row."""
    inputs, where = inputs_of(batch), asked(batch["targets"])
    length = inputs.shape[1]
    state = model.init_state(len(inputs), length) if length > chunk else None
    answers, places = [], []
    for start in range(0, length, chunk):
        here = slice(start, start + chunk)
        valid = batch["valid"][:, here] if "valid" in batch else None
        x, state = model.hidden(inputs[:, here], state, valid=valid)
        rows, columns = where[:, here].nonzero(as_tuple=True)
        answers.append(model.logits(x[rows, columns]))
        places.append(rows * length + start + columns)
    return torch.cat(answers)[torch.cat(places).argsort()]


def said(task: Task) -> dict[str, Any]:
    """The difficulty of a task, by its fields."""
    return {field.name: getattr(task, field.name) for field in difficulty(type(task))}


def cells(task: Task) -> Iterator[Task]:
    """The task at every depth and length of its heat map; what has no room is left out."""
    up, right = task.axes
    for depth in DEPTHS:
        for part in PARTS:
            try:
                yield dataclasses.replace(task, **{up: depth, right: getattr(task, right) // part})
            except SpecError:
                continue
