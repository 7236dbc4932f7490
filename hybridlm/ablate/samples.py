"""The samples of a study: what its trials train on, in their order, and what they are tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from hybridlm.ablate.measure import EVAL_TOKENS, HeldOut
from hybridlm.ablate.subject import length_of, text_path
from hybridlm.tasks.data import TaskData
from hybridlm.train.data import TextData
from hybridlm.train.samples import Batch, StepData

if TYPE_CHECKING:
    from hybridlm.ablate.study import Data, Study


def data_of(data: Data, seed: int, batch_size: int) -> StepData:
    """The data module of a study's data, prepared."""
    if data.task is not None:
        return TaskData(data.task, dict(data.params), held_out=data.held_out, batch_size=batch_size, seed=seed)
    text = TextData(text_path(data), context=data.context, tokenizer=data.tokenizer, batch_size=batch_size, seed=seed)
    text.prepare_data()
    text.setup()
    return text


def held_out_of(data: Data, seed: int, device: torch.device) -> HeldOut:
    """The held-out samples that trials of a seed are tested on."""
    module = data_of(data, seed, max(1, EVAL_TOKENS[device.type] // length_of(data)))
    return HeldOut(module, data.held_out, device, module.bytes_per_token if data.task is None else None)


class PackStream(IterableDataset):
    """{seed: batch} without end, from step `start` on: every seed's own training samples, in its own order."""

    def __init__(self, study: Study, seeds: Sequence[int], start: int) -> None:
        self.study, self.seeds, self.start = study, list(dict.fromkeys(seeds)), start

    def __iter__(self) -> Iterator[dict[int, Batch]]:
        size = self.study.train.batch_size
        modules = {seed: data_of(self.study.data, seed, size) for seed in self.seeds}
        streams = {seed: iter(module.training_samples(self.start * size, 0, 1)) for seed, module in modules.items()}
        while True:
            yield {seed: next(stream) for seed, stream in streams.items()}
