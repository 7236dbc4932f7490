"""TaskData: samples of a task for training, and others for validation. Sample i is a function of (seed, i)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError
from hybridlm.tasks.task import HELD_OUT, TRAINING, Samples, Task, make
from hybridlm.train.samples import Batch, StepData, permute, sample_numbers


class TaskData(StepData):
    """Samples of a task with known answers: generated, endless, the same everywhere.

    Args:
        task: name of a registered task, such as mqar.
        params: its difficulty, by the names of its fields; what is not said has the task's own default.
        held_out: how many samples validation sees; training never sees them.
        batch_size: samples in a batch of one device.
        seed: of all that is drawn.
        workers: processes that draw ahead. Any number gives the same batches.

    A batch has ids and targets (b, t) int64, or inputs (b, t, channels) and targets (b, t, outputs) float32, and valid
    (b, t) bool where lengths differ. Raises SpecError (all problems of a task at once) and DataError.
    """

    def __init__(
        self,
        task: str = "mqar",
        params: dict[str, Any] | None = None,
        held_out: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        _check_counts(held_out=held_out, batch_size=batch_size, workers=workers)
        self.task = make(task, params)
        self.held_out, self.seed = held_out, seed
        self.samples = Samples(self.task, seed)
        for family in (TRAINING, HELD_OUT):
            self.samples.sample(family, 0)  # SpecError now, not in the middle of a run, if there is none

    def require(self, spec: ModelSpec, path: str) -> None:
        """A model that reads and answers what the task asks."""
        if problems := misfits(self.task, spec):
            raise DataError("\n".join(f"{path}: {problem}" for problem in problems))

    def training_samples(self, start: int, rank: int, world: int) -> TaskStream:
        """Samples without end."""
        return TaskStream(self.samples, self.batch_size, start, rank, world)

    def held_out_samples(self, shuffled: bool) -> HeldOut:
        """The first `held_out` samples of the family that training never sees."""
        return HeldOut(self.samples, self.held_out, shuffled)


class TaskStream(IterableDataset):
    """Batches of training samples, those that `sample_numbers` says."""

    def __init__(self, samples: Samples, batch_size: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.samples, self.batch_size, self.start, self.rank, self.world = samples, batch_size, start, rank, world

    def __iter__(self) -> Iterator[Batch]:
        for numbers in sample_numbers(self.start, self.batch_size, self.rank, self.world):
            yield self.samples.batch(TRAINING, numbers)


class HeldOut(Dataset):
    """So many held-out samples; shuffled, they come in a fixed pseudo-random order."""

    def __init__(self, samples: Samples, count: int, shuffled: bool) -> None:
        self.samples, self.count, self.shuffled = samples, count, shuffled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        number = permute(index, self.count, key=0) if self.shuffled else index
        batch = self.samples.batch(HELD_OUT, np.asarray([number]))
        return {name: tensor[0] for name, tensor in batch.items()}


def misfits(task: Task, spec: ModelSpec) -> list[str]:
    """What keeps a model of this spec from a task, a sentence each: its ends, or their sizes."""
    return []


def _check_counts(**counts: int) -> None:
    least = {"workers": 0}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
            raise DataError(f"data.{name}: {value!r}; an integer of at least {least.get(name, 1)} is needed")
