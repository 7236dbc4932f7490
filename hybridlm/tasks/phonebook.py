"""Phone book: names and numbers, line by line, and then one of the names again, whose number is asked.

    Ada B. Young:4821906
    Leo K. Baker:1170358
    ...

    Ada B. Young:                     the answer is 4821906

After the look-up of Jelassi et al. 2024 (arXiv 2402.01032, section 4) and Waleffe et al. 2024 (arXiv 2406.07887,
section 3.3.3), which ask trained models: here without examples of how to answer, so that a small model can learn it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from string import ascii_uppercase
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LONGEST, within
from hybridlm.tasks.pieces import Piece, encoded, words
from hybridlm.tasks.task import Sample, TextTask

FIRST = words(
    "Ada Amy Ann Ben Carl Clara Dan Dora Ed Ella Emil Eva Finn Fred Grace Hans Helen Ida Igor Ines Ivan Jack Jane "
    "Joan John Karl Kate Lara Lea Leo Lisa Luke Mara Mark Mia Nina Noah Olga Otto Paul Rita Rosa Sam Sara Tina Tom Uma "
    "Vera Walt Zoe"
)
LAST = words(
    "Adams Baker Bell Brown Clark Cole Cook Cruz Diaz Ellis Evans Fox Frank Gray Green Hall Hill Howe Hunt James "
    "Jones Kaye Kelly King Klein Lane Lee Long Lopez Marsh Mason Mills Moore Nash Owens Park Price Reed Ross Shaw "
    "Smith Stone Todd Vega Wade Ward West White Wood Young"
)
WIDEST = max(map(len, FIRST)) + max(map(len, LAST)) + len(" X. :")


@dataclass(frozen=True, kw_only=True)
class Phonebook(TextTask):
    """A number out of a phone book.

    length: most bytes of a sample, of which a tokenizer makes fewer tokens. The book has as many entries as go in.
    depth:  where in the book the name stands that is asked: 0 at its beginning, 1 at its end. None: anywhere.
    digits: of a number, all as likely, each a token of its own.

    Names in a book are all different. Every digit of the answer is asked. Guessing is one digit in ten.
    """

    name: ClassVar[str] = "phonebook"
    axes: ClassVar[tuple[str, str]] = ("depth", "length")
    length: int = within(512, 64, LONGEST)
    depth: float | None = within(None, 0.0, 1.0)
    digits: int = within(7, 1, 64)

    @property
    def widest(self) -> int:
        """Most bytes of an entry, its end of line included."""
        return WIDEST + self.digits + 1

    def conflicts(self) -> Iterator[str]:
        if self.length < 3 * self.widest:
            yield (
                f"length: {self.length} has no room for two entries of up to {self.widest} bytes and a question; use "
                f"at least {3 * self.widest}"
            )

    def draw(self, random: np.random.Generator) -> Sample:
        book = self._book(random)
        asked = self._asked(random, list(book))
        pieces = [_entry(name, number) for name, number in book.items()]
        question = [Piece(f"\n{asked}:"), Piece(book[asked], asked=True, spelled=True)]
        return encoded([*chain.from_iterable(pieces), *question], self.codec)

    def guess(self) -> float:
        return 0.1

    def _book(self, random: np.random.Generator) -> dict[str, str]:
        """As many names with their numbers as there is room for."""
        book: dict[str, str] = {}
        room = self.length - self.widest  # a line's end stands before the question, and after it the text ends
        while True:
            name, number = self._name(random), self._number(random)
            line = len(f"{name}:{number}\n")
            if room < line:
                return book
            if name not in book:
                book[name] = number
                room -= line

    def _name(self, random: np.random.Generator) -> str:
        first, middle, last = (kind[random.integers(len(kind))] for kind in (FIRST, ascii_uppercase, LAST))
        return f"{first} {middle}. {last}"

    def _number(self, random: np.random.Generator) -> str:
        return "".join(map(str, random.integers(10, size=self.digits)))

    def _asked(self, random: np.random.Generator, names: list[str]) -> str:
        if self.depth is None:
            return names[random.integers(len(names))]
        return names[round(self.depth * (len(names) - 1))]


def _entry(name: str, number: str) -> tuple[Piece, Piece, Piece]:
    return Piece(f"{name}:"), Piece(number, spelled=True), Piece("\n")
