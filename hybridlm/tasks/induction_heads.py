"""Induction heads: what followed the special token when it stood there the first time?

    x x x [special] y x x x x [special]        asked at the end: y

Gu and Dao 2023 (Mamba, arXiv 2312.00752, section 4.1.2 and appendix E.2), after Olsson et al. 2022: whoever has
learned it at one length should do it at any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Task):
    """One question at the end of a random sequence.

    vocab_size: V; V - 1 is the special token, all others are as likely at every other place.
    length:     positions of a sample; the special token stands at a random one and at the last.

    Published: vocab_size 16, trained at length 256 on fresh samples, tested at 2^6 ... 2^20. Guessing is naming any
    token but the special one.
    """

    name: ClassVar[str] = "induction_heads"
    vocab_size: int = within(16, 3, LARGEST)
    length: int = within(256, 3, LONGEST)

    def draw(self, random: np.random.Generator) -> Sample:
        special = self.vocab_size - 1
        ids = random.integers(special, size=self.length)
        first = random.integers(self.length - 2)
        ids[first] = ids[-1] = special
        targets = np.full(self.length, IGNORED)
        targets[-1] = ids[first + 1]
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / (self.vocab_size - 1)
