"""Compression, of MAD's tasks: random tokens and a mark, whose vector alone must give every token back.

    7 3 5 1 |                         answers 7 3 5 1 |, each read from the vector at the mark and its position

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code): the mark itself is asked too.
Only a model whose answers all come from its last vector is put to the test, with `head: {type: recover, classes: 16}`:
one that answers from the vector of each position has no more to do than to repeat what it reads there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LARGEST, LONGEST, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class Compression(Task):
    """All tokens of a sample, from its last vector.

    vocab_size: V; V - 1 is the mark.
    seq_len:    positions, the mark among them.

    Published: vocab_size 16 to 128, seq_len 32 to 256. Guessing is one of the tokens, all as likely, and the mark at
    the last position.
    """

    name: ClassVar[str] = "compression"
    recovers: ClassVar[bool] = True
    vocab_size: int = within(16, 3, LARGEST)
    seq_len: int = within(32, 2, LONGEST)

    @property
    def length(self) -> int:
        return self.seq_len

    def draw(self, random: np.random.Generator) -> Sample:
        ids = random.integers(self.vocab_size - 1, size=self.seq_len)
        ids[-1] = self.vocab_size - 1
        return {"ids": ids, "targets": ids.copy()}

    def guess(self) -> float:
        return ((self.seq_len - 1) / (self.vocab_size - 1) + 1) / self.seq_len
