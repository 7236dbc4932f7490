"""Associative recall: pairs of a key and its value, then one of the keys again, whose value is asked.

    a 2 c 4 a 2 b 3 ... => c          the answer at the last position is 4

As in H3 (Fu et al. 2022, arXiv 2212.14052, section 3.1): keys are drawn with replacement, each has one value in a
sample, and what is asked was in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Task):
    """One value out of a context of pairs.

    vocab_size: V; the first half of the ids 0 ... V - 3 are keys, the other half values; V - 1 is "=>". V - 2 is a mark
                that H3 has for a key without a value, which is never asked here.
    context:    positions of the pairs, even. "=>" and the key follow.

    Published: vocab_size 20, context 40. Guessing is one of the values, all as likely.
    """

    name: ClassVar[str] = "associative_recall"
    vocab_size: int = within(20, 6, LARGEST)
    context: int = within(40, 2, LONGEST - 2)

    @property
    def length(self) -> int:
        return self.context + 2

    @property
    def keys(self) -> int:
        """How many there are; the ids behind them are the values."""
        return (self.vocab_size - 2) // 2

    @property
    def values(self) -> int:
        """How many there are."""
        return self.vocab_size - 2 - self.keys

    def conflicts(self) -> Iterator[str]:
        if self.context % 2:
            yield f"context: {self.context} is odd; pairs need twos: use {self.context - 1} or {self.context + 1}"

    def draw(self, random: np.random.Generator) -> Sample:
        value_of = self.keys + random.integers(self.values, size=self.keys)
        shown = random.integers(self.keys, size=self.context // 2)
        asked = random.choice(np.unique(shown))
        ids = np.empty(self.length, dtype=np.int64)
        ids[0:-2:2], ids[1:-2:2] = shown, value_of[shown]
        ids[-2:] = self.vocab_size - 1, asked
        targets = np.full(self.length, IGNORED, dtype=np.int64)
        targets[-1] = value_of[asked]
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / self.values
