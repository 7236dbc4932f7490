"""A law, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from hybridlm.errors import UnsupportedError
from hybridlm.testing.result import Result, broken, refused
from hybridlm.testing.subject import Subject

Proof = Callable[[Subject], Iterator[Result]]


@dataclass(frozen=True)
class Law:
    """number and title. proofs: generators of results, each with the kind of subject that it speaks of."""

    number: str
    title: str
    proofs: list[tuple[type[Subject], Proof]] = field(default_factory=list)

    def check(self, subject: Subject) -> list[Result]:
        """Every case; none if the law does not speak of such a subject."""
        found = [prove for kind, prove in self.proofs if isinstance(subject, kind)]
        return [replace(result, law=self.number) for prove in found for result in tried(prove, subject)]


def tried(prove: Proof, subject: Subject) -> list[Result]:
    """Gradients are off unless the proof turns them on. What it raises becomes a result."""
    found: list[Result] = []
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            found.extend(prove(subject))
    except UnsupportedError as error:
        found.append(refused("refused", str(error)))
    except Exception as error:
        after = f" after '{found[-1].case}'" if found else ""
        found.append(broken("raised", f"{type(error).__name__}{after}: {error}"))
    return found


LAWS: dict[str, Law] = {}


def law(number: str, title: str, of: type[Subject] = Subject) -> Callable[[Proof], Proof]:
    """Enter a generator of results as a proof of the law of that number, for one kind of subject or for all."""

    def enter(prove: Proof) -> Proof:
        LAWS.setdefault(number, Law(number, title)).proofs.append((of, prove))
        return prove

    return enter
