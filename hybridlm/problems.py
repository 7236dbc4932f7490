"""Every mistake of a file, or of a command line, at once: each is collected with its place, and one error tells all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hybridlm.errors import DataError, PatternError, SpecError, UnsupportedError

MOST = 40
"""Problems that are told one by one."""


class Problems:
    """What is wrong, in the order in which it was found, and what is only worth a warning."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.warnings: list[str] = []

    def add(self, path: str, reason: str) -> None:
        """One more. path: the key, such as axes.ratio.attention; reason: value, what is allowed, the fix."""
        self.found += [line for line in [f"{path}: {reason}" if path else reason] if line not in self.found]

    def warn(self, path: str, reason: str) -> None:
        """Something that runs, but that a reader of the results should know."""
        self.warnings += [line for line in [f"{path}: {reason}"] if line not in self.warnings]

    @contextmanager
    def at(self, path: str = "") -> Iterator[None]:
        """What is refused inside is collected, with the path before it, and the work goes on behind the block."""
        try:
            yield
        except (SpecError, PatternError, DataError, UnsupportedError, OSError) as error:
            self.add(path, str(error))

    def refuse(self, name: str = "") -> None:
        """SpecError that tells all of them, if there are any. name: of the file, where it is one."""
        before = f"{name}: " if name else ""
        if not self.found:
            return
        if len(self.found) == 1:
            raise SpecError(f"{before}{self.found[0]}")
        more = [f"... and {len(self.found) - MOST} more"] if len(self.found) > MOST else []
        lines = [line.replace("\n", "\n    ") for line in [*self.found[:MOST], *more]]
        raise SpecError(f"{before}{len(self.found)} problems:\n  " + "\n  ".join(lines))
