"""Data of a training that counts steps: sample i is a function of (seed, i), whatever the workers and devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError
from hybridlm.train.metrics import SCORES, Score

Batch = dict[str, Tensor]
"""ids (b, t) or inputs (b, t, channels); targets, as the head takes them; valid and segment_ids, if there are any."""


def inputs_of(batch: Batch) -> Tensor:
    """What the model reads of a batch: token ids, or signals."""
    return batch["ids"] if "ids" in batch else batch["inputs"]


class StepData(pl.LightningDataModule):
    """An endless stream to train on, which goes on from any sample, and held-out samples that are always alike.

    A subclass gives `require`, `training_samples` and `held_out_samples`.
    """

    tokenizer_path: Path | None = None  # a file that a run takes into its folder

    def __init__(self, batch_size: int, workers: int) -> None:
        super().__init__()
        self.batch_size, self.workers = batch_size, workers
        self._samples = 0  # training samples drawn before this run of the trainer began
        self._first_step = 0

    def require(self, spec: ModelSpec, path: str) -> None:
        """DataError unless a model of this spec, which lies at `path`, can be trained on it."""
        raise NotImplementedError

    def score(self, spec: ModelSpec) -> Score:
        """What validation measures; by default, what the model's head is measured by."""
        return SCORES[spec.output.type](spec)

    def collate(self, drawn: list) -> Batch:
        """Held-out samples -> a batch."""
        return default_collate(drawn)

    def training_samples(self, start: int, rank: int, world: int) -> IterableDataset:
        """Batches of one device, the first with the sample of number `start`."""
        raise NotImplementedError

    def held_out_samples(self, shuffled: bool) -> Dataset:
        """Every held-out sample once, in a fixed order."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """Endless batches, from where the run stands: training counts steps, not epochs."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self._first_step = self.trainer.global_step if self.trainer else 0
        return self._loader(self.training_samples(self._samples, rank, world))

    def val_dataloader(self) -> DataLoader:
        """Every held-out sample once, shuffled, always alike: the first batches are a fair sample of all.

        Several devices share it through Lightning's DistributedSampler.
        """
        return self._loader(self.held_out_samples(shuffled=True), self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """As validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Every held-out sample once, in its own order."""
        return self._loader(self.held_out_samples(shuffled=False), self.batch_size)

    def _loader(self, dataset: Dataset, batch_size: int | None = None) -> DataLoader:
        how = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return DataLoader(dataset, batch_size=batch_size, collate_fn=self.collate if batch_size else None, **how)

    def state_dict(self) -> dict[str, int]:
        """How many training samples the run has drawn: all that an exact resume needs."""
        if self.trainer is None:
            return {"samples": self._samples}
        steps = self.trainer.global_step - self._first_step
        step_samples = self.trainer.accumulate_grad_batches * self.trainer.world_size * self.batch_size
        return {"samples": self._samples + steps * step_samples}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue with the sample after the last one drawn."""
        self._samples = state_dict["samples"]


class SampleStream(IterableDataset):
    """Batches without end, of the samples that `sample_numbers` says.

    batch_of: (b,) sample numbers -> their batch.
    """

    def __init__(
        self, batch_of: Callable[[np.ndarray], Batch], batch_size: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.batch_of, self.batch_size, self.start, self.rank, self.world = batch_of, batch_size, start, rank, world

    def __iter__(self) -> Iterator[Batch]:
        yield from map(self.batch_of, sample_numbers(self.start, self.batch_size, self.rank, self.world))


class HeldOutSamples(Dataset):
    """So many held-out samples; shuffled, they come in a fixed pseudo-random order.

    sample_of: number -> the sample.
    """

    def __init__(self, sample_of: Callable[[int], Any], count: int, shuffled: bool) -> None:
        self.sample_of, self.count, self.shuffled = sample_of, count, shuffled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample_of(permute(index, self.count, key=0) if self.shuffled else index)


def require_counts(**counts: tuple[int, int]) -> None:
    """DataError for a setting of the data that is no integer, or below its least. name=(value, least)."""
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"data.{name}: {value!r}; an integer of at least {least} is needed")


def sample_numbers(start: int, batch_size: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """(b,) numbers of the samples in each batch of a device, without end.

    Batch j of rank r holds samples (j world + r) b ... + b - 1, from sample `start` on. In a worker process, its own
    share of them: workers take whole batches in turn, so their number changes nothing.
    """
    worker = get_worker_info()
    first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
    batch = start + (first * world + rank) * batch_size
    while True:
        yield np.arange(batch, batch + batch_size)
        batch += stride * world * batch_size


def permute(index: int, size: int, key: int) -> int:
    """Place of `index` in a pseudo-random order of range(size): a 4-round Feistel network, walked until inside.

    Needs no memory for the order, and any place can be asked for at once.
    """
    half = max(1, (size - 1).bit_length() + 1 >> 1)
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn << 48 | right) & ((1 << half) - 1))
        index = left << half | right
        if index < size:
            return index


def mix(key: int, value: int) -> int:
    """64 well-mixed bits of two integers (the finaliser of SplitMix64, Steele, Lea and Flood 2014, twice)."""
    mask = (1 << 64) - 1
    mixed = key & mask
    for word in (0x9E3779B97F4A7C15, value & mask):
        mixed = (mixed + word) & mask
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        mixed ^= mixed >> 31
    return mixed
