"""The errors a user can meet. Each message says what was wrong, where, what is allowed, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PatternError(ValueError):
    """A layer pattern that cannot be read; the message quotes it with a caret."""


class SpecError(ValueError):
    """A model or run description with a wrong key, type or value; the message names the path of the key."""


class StateError(ValueError):
    """A state that is spent, full, or made for another model or batch."""


class DataError(ValueError):
    """Input data that is missing, empty, binary, or too short."""


class CheckpointError(ValueError):
    """Saved weights or state that are damaged or were made from another spec."""


class ExportError(ValueError):
    """A model that a format cannot hold, or a checkpoint that hybridlm cannot; the message lists every misfit."""


class UnsupportedError(NotImplementedError):
    """Something this part cannot do at all. It refuses rather than ignoring the request."""


BEGUN = 4
"""Letters that say which name is meant by its beginning."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was probably meant to be, if there is one: one that it begins, or is like."""
    known = list(choices)
    begun = [choice for choice in known if len(name) >= BEGUN and choice.startswith(name)]
    near = difflib.get_close_matches(name, begun or known, n=1, cutoff=0.6 if not begun else 0)
    return next(iter(near or [choice for choice in known if choice.lower() == name.lower()]), None)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `choices`, or the empty string."""
    near = nearest(name, choices)
    return f" Did you mean {near!r}?" if near else ""
