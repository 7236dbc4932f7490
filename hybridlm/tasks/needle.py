"""Needle: one line that matters in a text that does not, and at the end the question for it.

    ... source of the standard library ...
    # The magic number of Oslo: 48213
    ... more of it ...
    # The magic number of Oslo:       the answer is 48213

After Kamradt's "needle in a haystack" (2023), with its two axes: the length of the text, and how deep the needle lies.
The text is the source of Python's standard library, so that none has to be downloaded: another version of Python has
another text, and the same needles in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LONGEST, within
from hybridlm.tasks.pieces import Piece, encoded, words
from hybridlm.tasks.task import Sample, TextTask
from hybridlm.train.corpus import standard_library

CITIES = words(
    "Accra Athens Bern Bogota Cairo Delhi Dublin Hanoi Havana Kyiv Lagos Lima Lisbon London Madrid Oslo Paris Prague "
    "Quito Riga Rome Seoul Sofia Tokyo Tunis Vienna Warsaw Zagreb"
)
LINE = "\n# The magic number of {}: "
WIDEST = len(LINE.format(max(CITIES, key=len)))


@dataclass(frozen=True, kw_only=True)
class Needle(TextTask):
    """A number that stands somewhere in a long text.

    length: bytes of a sample, of which a tokenizer makes fewer tokens.
    depth:  where the number stands: 0 at the beginning of the text, 1 at its end. None: anywhere.
    digits: of the number, all as likely, each a token of its own.

    Every digit of the answer is asked. Guessing is one digit in ten.
    """

    name: ClassVar[str] = "needle"
    axes: ClassVar[tuple[str, str]] = ("depth", "length")
    length: int = within(1024, 64, LONGEST)
    depth: float | None = within(None, 0.0, 1.0)
    digits: int = within(5, 1, 64)

    def conflicts(self) -> Iterator[str]:
        least = 2 * (WIDEST + self.digits)
        if self.length < least:
            yield f"length: {self.length} has no room for the needle and the question; use at least {least}"

    def draw(self, random: np.random.Generator) -> Sample:
        line = LINE.format(CITIES[random.integers(len(CITIES))])
        number = "".join(map(str, random.integers(10, size=self.digits)))
        text = haystack(random, self.length - 2 * (len(line) + self.digits))
        depth = random.random() if self.depth is None else self.depth
        place = round(depth * len(text))
        if place < len(text):
            place = text.rfind("\n", 0, place) + 1  # before a line, not inside it
        needle = [Piece(text[:place] + line), Piece(number, spelled=True)]
        question = [Piece(f"\n{text[place:]}{line}"), Piece(number, asked=True, spelled=True)]
        return encoded([*needle, *question], self.codec)

    def guess(self) -> float:
        return 0.1


def haystack(random: np.random.Generator, size: int) -> str:
    """So many characters of the standard library, from a random line on."""
    text = library()
    start = int(random.integers(len(text) - size + 1))
    start = text.rfind("\n", 0, start) + 1
    return text[start : start + size]


@lru_cache(maxsize=1)
def library() -> str:
    """The ASCII files of the standard library, one after another in the order of their paths. DataError without one."""
    contents = (file.read_bytes() for file in standard_library())
    return b"".join(content for content in contents if content.isascii() and b"\0" not in content).decode()
