"""Memorization, of MAD's tasks: keys whose values stand nowhere in the sequence, and are the same in all of them.

    a ? c ? a ? b ?                   answers 2 at the first ?, 4 at the second, 2, 3

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code): one table for all samples, that
is drawn from a seed of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within
from hybridlm.tasks.in_context_recall import key_and_value_ids
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class Memorization(Task):
    """Values of a fixed table, asked behind their keys.

    vocab_size: V; V - 1 is the mark behind a key; the first half of the other ids are keys, the rest values.
    seq_len:    positions, even.
    table_seed: of the table: a key has one value, and no two keys have the same. Whatever the seed of the samples,
                training and held-out samples ask for this one table.

    Held-out samples are no others than those of training: what is tested is the training table.
    Published: vocab_size 256 to 8192, seq_len 32, and as many samples as keys and values. Guessing is one of the
    values in the table, all as likely.
    """

    name: ClassVar[str] = "memorization"
    by_content: ClassVar[bool] = False
    vocab_size: int = within(256, 5, LARGEST)
    seq_len: int = within(32, 2, LONGEST)
    table_seed: int = within(12345, 0, (1 << 63) - 1)

    @property
    def length(self) -> int:
        return self.seq_len

    @cached_property
    def table(self) -> np.ndarray:
        """(keys,) int64: the value of each key."""
        keys, values = key_and_value_ids(self.vocab_size - 1)
        return values.start + np.random.default_rng(self.table_seed).permutation(len(values))[: len(keys)]

    def conflicts(self) -> Iterator[str]:
        if self.seq_len % 2:
            near = f"{self.seq_len - 1} or {self.seq_len + 1}"
            yield f"seq_len: {self.seq_len} is odd; keys and marks stand in twos: use {near}"

    def draw(self, random: np.random.Generator) -> Sample:
        keys = random.integers(len(self.table), size=self.seq_len // 2)
        ids = np.full(self.seq_len, self.vocab_size - 1, dtype=np.int64)
        ids[::2] = keys
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        targets[1::2] = self.table[keys]
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / len(self.table)
