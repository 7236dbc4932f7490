"""How a mistake is told: the message alone, in a panel on stderr. No screens of usage, no traceback."""

from __future__ import annotations

import sys


class UsageError(ValueError):
    """A command line that cannot be read."""


def readable(error: BaseException) -> str:
    """The message of an error; of an OSError the file and what the system says of it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def complain(message: str, title: str = "error") -> None:
    """Print the message to stderr. Outside a terminal nothing is wrapped, so that it can be searched."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    sys.stdout.flush()
    console = Console(stderr=True, highlight=False)
    needed = max(len(line) for line in [title, *message.splitlines()]) + 4
    if not console.is_terminal:
        console.width = needed + 4
    if needed > console.width and "^" in message:  # a caret points at nothing once its line is wrapped
        console.print(Text(f"{title}: {message}"), soft_wrap=True)
    else:
        console.print(Panel.fit(Text(message), title=title, title_align="left", border_style="red"))
