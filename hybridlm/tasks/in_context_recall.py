"""In-context recall, the first of MAD's tasks: pairs of a key and its value, and each key that returns asks its value.

    a 2 c 4 a 2 b 3 c                 answers 2 at the second a, 4 at the last c

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code): keys are drawn with
replacement, so that most of them return; a key has one value in a sample, drawn anew for the next.
Differs from the code: training asks what is scored, where theirs trains on every next token, most of them random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within, yes_or_no
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """Values of keys that were shown with them before.

    vocab_size:  V; the first half of the ids are keys, the others values.
    seq_len:     as MAD counts, even: its last token is the last answer, which no model reads.
    multi_query: ask at every key that was there before. Else at the last position alone, behind a mark, the id V - 1.

    Published: vocab_size 16 to 128, seq_len 128 to 1024. Guessing is one of the values, all as likely.
    """

    name: ClassVar[str] = "in_context_recall"
    vocab_size: int = within(16, 4, LARGEST)
    seq_len: int = within(128, 4, LONGEST)
    multi_query: bool = yes_or_no(True)

    @property
    def length(self) -> int:
        return positions(self.seq_len, self.multi_query)

    def conflicts(self) -> Iterator[str]:
        yield from pair_conflicts(self.seq_len, self.vocab_size, self.vocab_size - (not self.multi_query), 0)

    def draw(self, random: np.random.Generator) -> Sample:
        slots = self.seq_len // 2 - 1
        return recall(random, self.vocab_size, slots, np.zeros(slots, dtype=bool), self.multi_query)

    def guess(self) -> float:
        return 1 / len(key_and_value_ids(self.vocab_size - (not self.multi_query))[1])


def positions(seq_len: int, multi_query: bool) -> int:
    """Of a sample: all but the last answer and, where one key alone is asked, a mark before it."""
    return seq_len - 1 if multi_query else seq_len


def key_and_value_ids(symbols: int) -> tuple[range, range]:
    """The first half of the ids below `symbols`, and the rest, which is longer by one if they are odd."""
    return range(symbols // 2), range(symbols // 2, symbols)


def pair_conflicts(seq_len: int, vocab_size: int, symbols: int, noise_vocab_size: int) -> Iterator[str]:
    """What keeps a sample of pairs from being one. symbols: ids that are keys or values."""
    if seq_len % 2:
        yield f"seq_len: {seq_len} is odd; keys and values stand in twos: use {seq_len - 1} or {seq_len + 1}"
    if symbols < 4:
        lacking = 4 - symbols
        yield (
            f"vocab_size: {vocab_size} leaves {max(symbols, 0)} ids for keys and values"
            f"{f' beside {noise_vocab_size} of noise' if noise_vocab_size else ''}, and two of each are the least; use "
            f"{vocab_size + lacking}"
        )


def recall(
    random: np.random.Generator, vocab_size: int, slots: int, noisy: np.ndarray, multi_query: bool, noise: int = 0
) -> Sample:
    """Slots of two tokens, then a key that was in them.

    noisy: (slots,) bool, those that hold two of the `noise` ids that stand behind the values, and no pair.
    """
    symbols = vocab_size - noise - (not multi_query)
    keys, values = key_and_value_ids(symbols)
    value_of = random.choice(values, size=len(keys))
    pairs = np.empty((slots, 2), dtype=np.int64)
    pairs[:, 0] = random.integers(len(keys), size=slots)
    pairs[:, 1] = value_of[pairs[:, 0]]
    pairs[noisy] = symbols + random.integers(max(noise, 1), size=(int(noisy.sum()), 2))
    shown, first = np.unique(pairs[:, 0], return_index=True)
    again = ~noisy & multi_query
    again[first] = False
    last = random.choice(shown[shown < len(keys)])
    ids = np.concatenate([pairs.ravel(), [last] if multi_query else [vocab_size - 1, last]])
    targets = np.full(len(ids), IGNORED, dtype=np.int64)
    targets[2 * np.flatnonzero(again)] = pairs[again, 1]
    targets[-1] = value_of[last]
    return {"ids": ids, "targets": targets}
