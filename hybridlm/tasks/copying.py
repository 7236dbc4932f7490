"""Copying: what was read is asked again, all of it in order, or only what stands between noise.

    exact:      [begin] x1 ... xn [copy] x1 ... x(n-1)       asked from [copy] on: x1 ... xn
    selective:  . . x1 . x2 . . . xM . [mark] ... [mark]     asked at the marks: x1 ... xM

Copying is the form of Jelassi et al. 2024 (Repeat After Me, arXiv 2402.01032, section 3), in which a state of so many
bytes can hold so many symbols and no more. SelectiveCopying is the form of Gu and Dao 2023 (Mamba, arXiv 2312.00752,
section 4.1.1 and appendix E.1): the places of the symbols are random, so that no fixed filter can pick them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within
from hybridlm.tasks.task import Sample, Task

BEGIN, COPY, SYMBOLS = 0, 1, 2  # of Copying: two ids of its own, and the first that is copied
NOISE = 0  # of SelectiveCopying


@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """Exact copying, answered symbol by symbol while the right ones are read.

    vocab_size: of which 0 begins, 1 asks for the copy, and the rest are symbols, each as likely.
    tokens:     n, symbols to copy.
    shortest:   the fewest symbols; samples then have shortest ... tokens of them, each number as likely. None: tokens.

    Published: 26 letters, trained with up to 20 ... 300 of them, each length as likely. Guessing is naming any symbol.
    """

    name: ClassVar[str] = "copying"
    vocab_size: int = within(28, 3, LARGEST)
    tokens: int = within(16, 1, LONGEST // 2 - 1)
    shortest: int | None = within(None, 1, LONGEST // 2 - 1)

    @property
    def length(self) -> int:
        return 2 * self.tokens + 1

    def conflicts(self) -> Iterator[str]:
        if self.shortest is not None and self.shortest > self.tokens:
            yield f"shortest: {self.shortest} is more than tokens = {self.tokens}; use at most {self.tokens}"

    def draw(self, random: np.random.Generator) -> Sample:
        shortest = self.tokens if self.shortest is None else self.shortest
        symbols = random.integers(SYMBOLS, self.vocab_size, size=random.integers(shortest, self.tokens + 1))
        ids = np.concatenate([[BEGIN], symbols, [COPY], symbols[:-1]])
        targets = np.concatenate([np.full(len(symbols) + 1, IGNORED), symbols])
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / (self.vocab_size - SYMBOLS)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Selective copying: symbols at random places in noise, to be said in their order at the end.

    vocab_size: V; 0 is noise, V - 1 the mark that asks, and 1 ... V - 2 are symbols, each as likely.
    length:     positions of a sample, the marks among them.
    tokens:     M, symbols to copy, and marks.

    Published: vocab_size 16, length 4096, tokens 16. Guessing is naming any symbol.
    """

    name: ClassVar[str] = "selective_copying"
    vocab_size: int = within(16, 3, LARGEST)
    length: int = within(64, 2, LONGEST)
    tokens: int = within(8, 1, LONGEST // 2)

    def conflicts(self) -> Iterator[str]:
        if 2 * self.tokens > self.length:
            yield (
                f"length: {self.length} has no room for {self.tokens} tokens and as many marks; use at least "
                f"{2 * self.tokens}"
            )

    def draw(self, random: np.random.Generator) -> Sample:
        symbols = random.integers(1, self.vocab_size - 1, size=self.tokens)
        ids, targets = np.full(self.length, NOISE), np.full(self.length, IGNORED)
        places = random.choice(self.length - self.tokens, self.tokens, replace=False, shuffle=False)
        ids[np.sort(places)] = symbols
        ids[-self.tokens :], targets[-self.tokens :] = self.vocab_size - 1, symbols
        return {"ids": ids, "targets": targets}

    def guess(self) -> float:
        return 1 / (self.vocab_size - 2)
