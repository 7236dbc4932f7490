"""Indirect object: sentences in which one name appears once, and all others twice. The one is asked.

    Then Anna and Paul went to the station. Paul gave a book to       the answer is Anna

After Wang et al. 2022 (arXiv 2211.00593, section 2 and appendix E), whose circuit in GPT-2 is a classic: two names in
either order, places and objects, from templates. The sentences are our own. Every name has an initial of its own, and
the initial is what is asked, so that a right answer is a right name, not letters that follow from those before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import within
from hybridlm.tasks.pieces import Piece, encoded, words
from hybridlm.tasks.task import Sample, TextTask

NAMES = words(
    "Anna Boris Carla David Emma Felix Gina Henry Irene Jonas Karin Lucas Maria Nora Oscar Paul Quentin Rosa Simon "
    "Teresa Ulrich Vera William Xenia Yusuf Zoe"
)
PLACES = words(
    "airport bakery beach bridge cinema factory garden harbour hotel kitchen library market museum office park "
    "restaurant school stadium station theatre"
)
OBJECTS = words(
    "ball basket book camera candle card chair coat cup flower guitar hat key lamp letter map picture ring sandwich "
    "ticket"
)
OPENINGS = (
    "Then {people} went to the {place}.",
    "One evening {people} met at the {place}.",
    "After lunch {people} sat down in front of the {place}.",
    "When {people} came home from the {place},",
    "While {people} were waiting at the {place},",
    "As soon as {people} had found the {place},",
)
MARK = "|"  # before and behind a name, while a sentence is put together
DEEDS = (
    "{givers} gave a {object} to ",
    "{givers} handed a {object} to ",
    "{givers} wanted to show a {object} to ",
    "{givers} offered a {object} to ",
    "{givers} decided to bring a {object} to ",
    "{givers} promised a {object} to ",
)


@dataclass(frozen=True, kw_only=True)
class IndirectObject(TextTask):
    """The name that appears once.

    names:  how many names there are to choose from.
    people: names in the first sentence; all but one come again in the second, in any order.

    Published: 2 people. Guessing is one of the names, all as likely. Who names anyone of the first sentence has
    1 / people.
    """

    name: ClassVar[str] = "indirect_object"
    names: int = within(len(NAMES), 2, len(NAMES))
    people: int = within(2, 2, len(NAMES))

    @property
    def length(self) -> int:
        names = sorted(NAMES[: self.names], key=len, reverse=True)[: self.people]
        opening = max(OPENINGS, key=len).format(people=_listed(names), place=max(PLACES, key=len))
        deed = max(DEEDS, key=len).format(givers=_listed(names[:-1]), object=max(OBJECTS, key=len))
        return len(f"{opening} {deed}".replace(MARK, ""))

    def conflicts(self) -> list[str]:
        if self.people > self.names:
            return [f"people: {self.people} different ones, but names = {self.names}; use at most {self.names}"]
        return []

    def draw(self, random: np.random.Generator) -> Sample:
        people = [NAMES[i] for i in random.permutation(self.names)[: self.people]]
        answer = people[random.integers(self.people)]
        givers = [name for name in random.permutation(people).tolist() if name != answer]
        opening = _one_of(random, OPENINGS).format(people=_listed(people), place=_one_of(random, PLACES))
        deed = _one_of(random, DEEDS).format(givers=_listed(givers), object=_one_of(random, OBJECTS))
        text = [Piece(part, spelled=i % 2 == 1) for i, part in enumerate(f"{opening} {deed}".split(MARK))]
        return encoded([*text, Piece(answer[0], asked=True, spelled=True)], self.codec)

    def guess(self) -> float:
        return 1 / self.names


def _one_of(random: np.random.Generator, words: tuple[str, ...] | list[str]) -> str:
    return words[random.integers(len(words))]


def _listed(names: list[str]) -> str:
    """Anna, Boris and Carla, each between marks."""
    names = [f"{MARK}{name}{MARK}" for name in names]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
