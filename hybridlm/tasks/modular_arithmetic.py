"""Modular arithmetic: an expression, whose value modulo a number is asked at the "=" behind it.

    2 + 3 * 4 =                       the answer modulo 5 is 4
    ( ( - 2 ) * ( 3 + 1 ) ) =         with brackets: 2

Without brackets (a regular language) and with them (a context-free one), as in Deletang et al. 2022 (arXiv 2207.02098,
appendix A) and Grazzi et al. 2024 (arXiv 2411.12537, section 5.2): products come before sums; with brackets, an
expression of n tokens is a number, -number, (number) or (-number) for n = 1 ... 4, and (left operator right) otherwise,
with a random length of the left part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.difficulty import one_of, within, yes_or_no
from hybridlm.tasks.task import Sample, Task

SIGNS = "+-*()="  # their ids follow those of the numbers
LONGEST_EXPRESSION = 1024
MARK, LEAST = 1, 3  # tokens of "=", and of the shortest expression


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Task):
    """The value of an expression.

    length:    tokens of the longest expression and "=". Even without brackets, where numbers and operators take turns.
    shortest:  tokens of the shortest one and "="; each length that is possible is as likely. None: length.
    modulus:   the ids 0 ... modulus - 1 are numbers; + - * ( ) = follow.
    operators: that an expression may have, all as likely: +-* or +-.
    brackets:  around every operation.

    Published: modulus 5; trained at lengths from 3 to 40, tested up to 256. Guessing is the most frequent value: with
    products it is 0, and more likely than 1 / modulus.
    """

    name: ClassVar[str] = "modular_arithmetic"
    length: int = within(40, LEAST + MARK, LONGEST_EXPRESSION)
    shortest: int | None = within(LEAST + MARK, LEAST + MARK, LONGEST_EXPRESSION)
    modulus: int = within(5, 2, 256)
    operators: str = one_of("+-*", "+-*", "+-")
    brackets: bool = yes_or_no(False)

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(SIGNS)

    @property
    def sizes(self) -> range:
        """Tokens that an expression may have."""
        least = self.length if self.shortest is None else self.shortest
        return range(least - MARK, self.length - MARK + 1, 1 if self.brackets else 2)

    def conflicts(self) -> Iterator[str]:
        if self.shortest is not None and self.shortest > self.length:
            yield f"shortest: {self.shortest} is more than length = {self.length}; lower it, or leave it out"
        for name, tokens in (("length", self.length), ("shortest", self.shortest)):
            if not self.brackets and tokens is not None and tokens % 2:
                yield (
                    f"{name}: {tokens} is odd; numbers and operators take turns, and = follows: use {tokens - 1} or "
                    f"{tokens + 1}"
                )

    def draw(self, random: np.random.Generator) -> Sample:
        tokens = self.sizes[random.integers(len(self.sizes))]
        write = self._nested if self.brackets else self._flat
        ids, value = write(random, tokens)
        targets = np.full(len(ids) + MARK, IGNORED, dtype=np.int64)
        targets[-1] = value % self.modulus
        return {"ids": np.array([*ids, self._sign("=")], dtype=np.int64), "targets": targets}

    def guess(self) -> float:
        flat_or_nested = nested_values if self.brackets else flat_values
        table = flat_or_nested(self.modulus, "*" in self.operators, self.sizes[-1])
        return float(np.mean([table[tokens] for tokens in self.sizes], axis=0).max())

    def _sign(self, sign: str) -> int:
        return self.modulus + SIGNS.index(sign)

    def _flat(self, random: np.random.Generator, tokens: int) -> tuple[list[int], int]:
        """Numbers with operators between them, and the value."""
        numbers = random.integers(self.modulus, size=tokens // 2 + 1).tolist()
        signs = [self.operators[i] for i in random.integers(len(self.operators), size=tokens // 2)]
        ids, total, product = [numbers[0]], 0, numbers[0]  # the value so far is total + product
        for sign, number in zip(signs, numbers[1:], strict=True):
            ids += self._sign(sign), number
            if sign == "*":
                product = product * number % self.modulus
            else:
                total, product = total + product, number if sign == "+" else -number
        return ids, total + product

    def _nested(self, random: np.random.Generator, tokens: int) -> tuple[list[int], int]:
        """An expression of the grammar with brackets, and its value."""
        opening, closing = [self._sign("(")], [self._sign(")")]
        if tokens <= 4:
            number = int(random.integers(self.modulus))
            minus = [self._sign("-")] if tokens % 2 == 0 else []
            inside = [*minus, number]
            return opening + inside + closing if tokens > 2 else inside, -number if minus else number
        left_tokens = int(random.integers(1, tokens - 3))
        left, a = self._nested(random, left_tokens)
        right, b = self._nested(random, tokens - 3 - left_tokens)
        sign = self.operators[random.integers(len(self.operators))]
        value = a + b if sign == "+" else a - b if sign == "-" else a * b
        return opening + left + [self._sign(sign)] + right + closing, value % self.modulus


@lru_cache(maxsize=64)
def flat_values(modulus: int, products: bool, longest: int) -> dict[int, np.ndarray]:
    """How likely each value is, (modulus,), of an expression without brackets, by its number of tokens.

    One operator after another: `likely[s, p]` is the probability that the value so far is s + p, p its last product.
    """
    numbers = np.arange(modulus)
    times, total = numbers[:, None] * numbers % modulus, (numbers[:, None] + numbers) % modulus
    likely = np.zeros((modulus, modulus))
    likely[0] = 1 / modulus
    found = {}
    for tokens in range(1, longest + 1, 2):
        found[tokens] = np.bincount(total.ravel(), likely.ravel(), minlength=modulus)
        apart = np.tile(found[tokens][:, None] / modulus, (1, modulus))  # after + and -: any number is the last product
        longer = np.stack([np.bincount(row, minlength=modulus) for row in times]) / modulus
        likely = (2 * apart + likely @ longer) / 3 if products else apart
    return found


@lru_cache(maxsize=64)
def nested_values(modulus: int, products: bool, longest: int) -> dict[int, np.ndarray]:
    """How likely each value is, (modulus,), of an expression with brackets, by its number of tokens."""
    numbers = np.arange(modulus)
    a, b = numbers[:, None], numbers[None]
    results = [(a + b) % modulus, (a - b) % modulus, *([a * b % modulus] if products else [])]
    likely = np.full((longest + 1, modulus), 1 / modulus)  # up to 4 tokens: one number, all as likely
    for tokens in range(5, longest + 1):
        parts = likely[1 : tokens - 3]  # of 1 ... tokens - 4 tokens on the left, the others on the right
        both = parts.T @ parts[::-1] / len(parts)
        counts = [np.bincount(result.ravel(), both.ravel(), minlength=modulus) for result in results]
        likely[tokens] = np.mean(counts, axis=0)
    return dict(enumerate(likely))
