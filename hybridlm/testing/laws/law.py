"""A law, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from hybridlm.errors import UnsupportedError
from hybridlm.testing.result import Result, broken, refused
from hybridlm.testing.subject import Solo, Subject

LAWS: dict[str, Law] = {}


@dataclass(frozen=True)
class Law:
    """number: as in the table of docs/laws. title: what must hold. models: whether it also speaks of whole models."""

    number: str
    title: str
    prove: Callable[[Subject], Iterator[Result]]
    models: bool

    def check(self, subject: Subject) -> list[Result]:
        """Every case, gradients off unless the law turns them on. What is raised becomes a result."""
        found: list[Result] = []
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                found.extend(self.prove(subject))
        except UnsupportedError as error:
            found.append(refused("refused", str(error)))
        except Exception as error:
            after = f" after '{found[-1].case}'" if found else ""
            found.append(broken("raised", f"{type(error).__name__}{after}: {error}"))
        return [replace(result, law=self.number) for result in found]

    def speaks_of(self, subject: Subject) -> bool:
        """Whether the law applies to this kind of subject."""
        return self.models or isinstance(subject, Solo)


def law(number: str, title: str, *, models: bool = True) -> Callable:
    """Enter a generator of results as the law of that number."""

    def enter(prove: Callable[[Subject], Iterator[Result]]) -> Callable[[Subject], Iterator[Result]]:
        LAWS[number] = Law(number, title, prove, models)
        return prove

    return enter
