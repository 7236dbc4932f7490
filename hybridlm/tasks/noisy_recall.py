"""Noisy in-context recall, of MAD's tasks: in-context recall with tokens between the pairs that mean nothing.

    a 2 % % c 4 # % a 2 c             answers 2 at the second a, 4 at the last c

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code): a slot of two tokens holds noise
from a vocabulary of its own with a fixed probability, and a pair otherwise.
Differs from the code: one of the slots that are there is kept for a pair (their draw counts one slot too many, and can
fail for want of a key to ask); training asks what is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LARGEST, LONGEST, within, yes_or_no
from hybridlm.tasks.in_context_recall import key_and_value_ids, pair_conflicts, positions, recall
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(Task):
    """Values of keys that were shown with them before, between noise.

    vocab_size:       V, noise included: keys, values, and then the noise.
    noise_vocab_size: ids that are noise.
    frac_noise:       probability of a slot of two tokens to hold noise.
    seq_len:          as MAD counts, even: its last token is the last answer, which no model reads.
    multi_query:      ask at every key that was there before. Else at the last position alone, behind the id V - 1.

    Published: vocab_size 32 to 144 with 16 of noise, frac_noise 0.2 to 0.8, seq_len 128 to 1024. Guessing is one of
    the values, all as likely.
    """

    name: ClassVar[str] = "noisy_recall"
    vocab_size: int = within(32, 5, LARGEST)
    noise_vocab_size: int = within(16, 1, LARGEST)
    frac_noise: float = within(0.2, 0.0, 1.0)
    seq_len: int = within(128, 4, LONGEST)
    multi_query: bool = yes_or_no(True)

    @property
    def length(self) -> int:
        return positions(self.seq_len, self.multi_query)

    @property
    def symbols(self) -> int:
        """Ids that are keys or values."""
        return self.vocab_size - self.noise_vocab_size - (not self.multi_query)

    def conflicts(self) -> Iterator[str]:
        yield from pair_conflicts(self.seq_len, self.vocab_size, self.symbols, self.noise_vocab_size)

    def draw(self, random: np.random.Generator) -> Sample:
        slots = self.seq_len // 2 - 1
        noisy = random.random(slots) < self.frac_noise
        noisy[random.integers(slots)] = False
        return recall(random, self.vocab_size, slots, noisy, self.multi_query, self.noise_vocab_size)

    def guess(self) -> float:
        return 1 / len(key_and_value_ids(self.symbols)[1])
