"""Multi-query associative recall: pairs of a key and a value, and then every key again, whose value is asked.

    k1 v1 k2 v2 ... kN vN | slots of two tokens: a key, whose value is asked there, or fillers

MQAR is the form of Arora et al. 2023 (Zoology, arXiv 2312.04927, section 4 and appendix E): key i stands at the slot
g that was drawn, without replacement, with p(g) ~ g^(a-1), so that at a small a most questions follow soon after.
PackedMQAR is the form of Dao and Gu 2024 (Mamba-2, appendix D.1): a quarter as many pairs as positions, so that no
slot is left over; fillers are random, and some samples have fewer pairs, as their curriculum has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import LARGEST, LONGEST, one_of, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall, as in Zoology.

    vocab_size: V; keys are the ids 1 ... V/2 - 1, values V/2 ... V - 1, each at most once in a context. 0 is a filler.
    length:     positions of a sample, even, at least four a pair.
    pairs:      N, of a key and a value; every key is asked once.
    power:      a in p(g) ~ g^(a-1), of the slots: 1 makes all as likely, 0.01 the first ones by far the likeliest.
    fillers:    what stands where no key does: zero, or random ids of the whole vocabulary, which ask nothing.

    Published: vocab_size 8192 and (length, pairs) = (64, 4), (128, 8), (256, 16). Guessing is naming one of the
    context's values: 1 / pairs, where models without memory stay for long.
    """

    name: ClassVar[str] = "mqar"
    vocab_size: int = within(128, 4, LARGEST)
    length: int = within(64, 4, LONGEST)
    pairs: int = within(8, 1, LARGEST)
    power: float = within(0.01, 0.0, 100.0)
    fillers: str = one_of("zero", "zero", "random")

    def conflicts(self) -> Iterator[str]:
        if 4 * self.pairs > self.length:
            yield (
                f"length: {self.length} is less than four positions for each of {self.pairs} pairs; use at least "
                f"{4 * self.pairs}, or at most {self.length // 4} pairs"
            )
        yield from _shape_conflicts(self.vocab_size, self.length, self.pairs)

    def draw(self, random: np.random.Generator) -> Sample:
        return recall(random, self.vocab_size, self.length, self.pairs, self.power, self.fillers == "random")

    def guess(self) -> float:
        return 1 / self.pairs


@dataclass(frozen=True, kw_only=True)
class PackedMQAR(Task):
    """Multi-query associative recall without room to spare, as in Mamba-2.

    vocab_size: V, as in MQAR.
    length:     T, a multiple of 4 * 2^(stages - 1).
    stages:     of the curriculum: a sample has T/4, T/8, ..., T/(4 * 2^(stages - 1)) pairs, each as likely. 1: T/4.
    power:      a in p(g) ~ g^(a-1), of the slots.

    Published: vocab_size 8192, length 256, 512 and 1024, trained with stages 4 and tested with 1. Guessing is naming
    one of the context's values.
    """

    name: ClassVar[str] = "mqar_packed"
    vocab_size: int = within(128, 4, LARGEST)
    length: int = within(64, 4, LONGEST)
    stages: int = within(1, 1, 16)
    power: float = within(0.01, 0.0, 100.0)

    @property
    def counts(self) -> list[int]:
        """Numbers of pairs that a sample may have, the most first."""
        return [self.length // 4 >> stage for stage in range(self.stages)]

    def conflicts(self) -> Iterator[str]:
        step = 4 << (self.stages - 1)
        if self.length % step:
            near = max(step, self.length // step * step)
            yield f"length: {self.length} is no multiple of {step}, which {self.stages} stages need; use {near}"
        yield from _shape_conflicts(self.vocab_size, self.length, self.length // 4)

    def draw(self, random: np.random.Generator) -> Sample:
        pairs = self.counts[random.integers(self.stages)]
        return recall(random, self.vocab_size, self.length, pairs, self.power, random_fillers=True)

    def guess(self) -> float:
        """One right answer a sample, whatever its number of pairs."""
        return self.stages / sum(self.counts)


def _shape_conflicts(vocab_size: int, length: int, pairs: int) -> Iterator[str]:
    if length % 2:
        yield f"length: {length} is odd; keys and values stand in twos: use {length - 1} or {length + 1}"
    if pairs > vocab_size // 2 - 1:
        yield (
            f"vocab_size: {vocab_size} has {vocab_size // 2 - 1} keys, and {pairs} pairs need as many; use at least "
            f"{2 * pairs + 2}"
        )


def recall(
    random: np.random.Generator, vocab_size: int, length: int, pairs: int, power: float, random_fillers: bool
) -> Sample:
    """A context of `pairs`, and the slots behind it."""
    half, context = vocab_size // 2, 2 * pairs
    keys, values = 1 + some(random, half - 1, pairs), half + some(random, vocab_size - half, pairs)
    ids = random.integers(vocab_size, size=length) if random_fillers else np.zeros(length, dtype=np.int64)
    targets = np.full(length, IGNORED, dtype=np.int64)
    asked = context + 2 * slots(random, (length - context) // 2, pairs, power)
    ids[:context:2], ids[1:context:2], ids[asked] = keys, values, keys
    targets[asked] = values
    return {"ids": ids, "targets": targets}


def slots(random: np.random.Generator, count: int, pairs: int, power: float) -> np.ndarray:
    """(pairs,) different slots out of `count`, drawn one after another with p(g) ~ g^(power-1), g from 1.

    By a race: slot g rings after a time of rate p(g), and who rings first is drawn first.
    """
    times = random.standard_exponential(count) * np.arange(1.0, count + 1) ** (1 - power)
    return times.argsort()[:pairs]


def some(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(size,) different numbers below count, each as likely, in an order that is random too."""
    few = count <= 512  # there, a whole permutation is faster
    return random.permutation(count)[:size] if few else random.choice(count, size, replace=False)
