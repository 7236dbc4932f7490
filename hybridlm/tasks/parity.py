"""Parity: bits, and at each of them whether the ones so far are an odd number.

    ids      1 0 1 1 0
    targets  1 1 0 1 1

The smallest task that needs a state which never forgets: Grazzi et al. 2024 (arXiv 2411.12537, section 5.1), with an
answer at every position where they ask for the last alone. What is asked of a sample's beginning is the same task at
a smaller length, so that no lengths need to be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LONGEST, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class Parity(Task):
    """Whether the ones so far are an odd number, asked at every position.

    length: bits of a sample, each a fair coin.

    Published: trained at lengths up to 40, tested up to 256. Guessing is one half.
    """

    name: ClassVar[str] = "parity"
    vocab_size: ClassVar[int] = 2
    length: int = within(40, 1, LONGEST)

    def draw(self, random: np.random.Generator) -> Sample:
        bits = random.integers(2, size=self.length)
        return {"ids": bits, "targets": np.bitwise_xor.accumulate(bits)}

    def guess(self) -> float:
        return 0.5
