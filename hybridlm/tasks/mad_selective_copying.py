"""Selective copying as MAD has it: tokens between blanks, a mark, and then the tokens again in their order.

    7 _ _ 3 _ 5 | _ _ _               answers 7 3 5 at the blanks behind the mark

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code). What sets it apart from the task
`selective_copying` (Mamba): each blank stands before a token drawn at random, so that the last token always stands
right before the mark, and blanks, not markers, ask.
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
class MADSelectiveCopying(Task):
    """The tokens of a sample, without the blanks between them.

    vocab_size:         V; V - 1 is the mark, V - 2 the blank.
    seq_len:            positions.
    num_tokens_to_copy: tokens that are no blanks.

    Published: vocab_size 16 to 128, seq_len 256 to 1024, num_tokens_to_copy 16 to 96. Guessing is one of the tokens,
    all as likely.
    """

    name: ClassVar[str] = "mad_selective_copying"
    vocab_size: int = within(16, 4, LARGEST)
    seq_len: int = within(256, 4, LONGEST)
    num_tokens_to_copy: int = within(16, 1, LONGEST)

    @property
    def length(self) -> int:
        return self.seq_len

    def conflicts(self) -> Iterator[str]:
        least = 2 * self.num_tokens_to_copy + 2
        if self.seq_len < least:
            yield (
                f"seq_len: {self.seq_len} has no room for {self.num_tokens_to_copy} tokens twice, a blank and a mark; "
                f"use at least {least}, or at most {(self.seq_len - 2) // 2} num_tokens_to_copy"
            )

    def draw(self, random: np.random.Generator) -> Sample:
        count = self.num_tokens_to_copy
        before = self.seq_len - count - 1
        tokens = random.integers(self.vocab_size - 2, size=count)
        blanks = np.bincount(random.integers(count, size=before - count), minlength=count)  # before each token
        ids = np.full(self.seq_len, self.vocab_size - 2, dtype=np.int64)
        ids[np.cumsum(blanks + 1) - 1] = tokens
        ids[before] = self.vocab_size - 1
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        targets[-count:] = tokens
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / (self.vocab_size - 2)
