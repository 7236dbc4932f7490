"""How a mistake is told: the message alone. No screens of usage, no traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """A command line that cannot be read."""


def readable(error: BaseException) -> str:
    """The message of an error; of an OSError the file and what the system says of it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
