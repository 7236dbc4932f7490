"""Fuzzy in-context recall, of MAD's tasks: keys and values are motifs of several tokens.

    (a b) (7 2) (c a) (5) (a b) (7 2) ... (c a) (5)         values of keys that return are asked, token by token

As in MAD (Poli et al. 2024, arXiv 2403.17844, section 3 and appendix B, and its code): a motif is tokens without
repetition, of keys or of values, and no mark parts one from the next. One pair is chosen to be asked at the end; it is
shown once somewhere before. Pads fill the beginning.
Differs from the code: the chosen pair is always shown (theirs can be placed where no motif begins any more); training
asks what is scored; and keys are of the full size in training too, unless `vary_keys` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, within, yes_or_no
from hybridlm.tasks.in_context_recall import key_and_value_ids
from hybridlm.tasks.task import Sample, Task

Motif = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(Task):
    """Values of several tokens, of keys of several tokens that were shown with them before.

    vocab_size:   V; keys are the first half of the ids that are no marks, values the rest; then a pad, V - 1 if
                  multi_query. Else the pad is V - 2, and V - 1 the mark before the key that is asked.
    seq_len:      positions.
    k_motif_size: tokens of a key.
    v_motif_size: most tokens of a value: 1 to so many, each number as likely.
    multi_query:  ask at every key that was there before, not at the last alone.
    vary_keys:    keys of 1 to k_motif_size tokens, as MAD trains. It tests with keys of k_motif_size: of shorter ones
                  no model can know where they end.

    Published: vocab_size 16 to 128, seq_len 128 to 1024, motifs 3. Guessing is one of the tokens of values, all as
    likely.
    """

    name: ClassVar[str] = "fuzzy_recall"
    vocab_size: int = within(16, 5, LARGEST)
    seq_len: int = within(128, 3, LONGEST)
    k_motif_size: int = within(3, 1, 64)
    v_motif_size: int = within(3, 1, 64)
    multi_query: bool = yes_or_no(True)
    vary_keys: bool = yes_or_no(False)

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def pad(self) -> int:
        """The id that fills the beginning; those below it are keys and values."""
        return self.vocab_size - (1 if self.multi_query else 2)

    @property
    def widest(self) -> int:
        """Most tokens of a pair."""
        return self.k_motif_size + self.v_motif_size

    def conflicts(self) -> Iterator[str]:
        if self.seq_len < 3 * self.widest:
            yield (
                f"seq_len: {self.seq_len} has no room for three pairs of up to {self.widest} tokens; use at least "
                f"{3 * self.widest}"
            )
        keys, values = key_and_value_ids(self.pad)
        for name, size, ids in (("k", self.k_motif_size, keys), ("v", self.v_motif_size, values)):
            if size > len(ids):
                yield f"{name}_motif_size: {size} different tokens, but vocab_size {self.vocab_size} has {len(ids)}"
        if len(values) < 2:
            yield f"vocab_size: {self.vocab_size} has {len(values)} value, and two are the least; use at least 5"

    def draw(self, random: np.random.Generator) -> Sample:
        key, value = self._key(random), self._value(random)
        read, answers = self._context(random, key, value)
        mark = () if self.multi_query else (self.vocab_size - 1,)
        read += [*mark, *key, *value]
        answers += [IGNORED] * (len(mark) + len(key)) + list(value)
        pads = self.seq_len + 1 - len(read)
        ids = np.array([self.pad] * pads + read, dtype=np.int64)
        return {"ids": ids[:-1], "targets": np.array([IGNORED] * pads + answers, dtype=np.int64)[1:]}

    def guess(self) -> float:
        return 1 / len(key_and_value_ids(self.pad)[1])

    def _context(self, random: np.random.Generator, key: Motif, value: Motif) -> tuple[list[int], list[int]]:
        """Tokens of pairs, this one among them, and what is asked of each token."""
        end = self.seq_len - len(key) - len(value) - self.widest  # where no more pair begins
        place = random.integers(end - self.widest + 1)  # from here on the given pair is due; some pair begins in time
        value_of: dict[Motif, Motif] = {}
        read: list[int] = []
        answers: list[int] = []
        while len(read) < end:
            shown = key if len(read) >= place and key not in value_of else self._key(random)
            again = shown in value_of
            answer = value_of.setdefault(shown, value if shown == key else self._value(random))
            read += [*shown, *answer]
            answers += [IGNORED] * len(shown)
            answers += answer if again and self.multi_query else [IGNORED] * len(answer)
        return read, answers

    def _key(self, random: np.random.Generator) -> Motif:
        size = random.integers(1, self.k_motif_size + 1) if self.vary_keys else self.k_motif_size
        return _motif(random, key_and_value_ids(self.pad)[0], size)

    def _value(self, random: np.random.Generator) -> Motif:
        return _motif(random, key_and_value_ids(self.pad)[1], random.integers(1, self.v_motif_size + 1))


def _motif(random: np.random.Generator, ids: range, size: int) -> Motif:
    """Different tokens, in any order."""
    return tuple((ids.start + random.choice(len(ids), size=size, replace=False)).tolist())
