"""What the terminal shows of a command: results, messages, and not the noise of the libraries underneath.

Costs neither torch nor Lightning to import: the other commands tell their mistakes with it too.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_ADVERTISERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_ADVERT = re.compile(
    r"Tip|litlogger|litmodels|(GPU|TPU|HPU) available|`Trainer.fit` stopped|Restor|Loaded model weights|weights_only"
    r"|was configured so"
)
_NOISE = (
    "does not have many workers",
    "args parameter is intended",
    "exists and is not empty",
    "callbacks used to create the checkpoint need to be provided",
    r"`isinstance\(treespec, LeafSpec\)`",
)


class Terminal(Console):
    """A console whose reader may leave, as `| head` does: what follows goes nowhere, and the work goes on."""

    def on_broken_pipe(self) -> None:
        """Instead of rich's own, which ends the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def panel(message: str, title: str = "error", color: str = "red") -> None:
    """A framed message on stderr. Outside a terminal nothing is wrapped, so that it can be searched."""
    sys.stdout.flush()
    console = Terminal(stderr=True, highlight=False)
    needed = max(len(line) for line in [title, *message.splitlines()]) + 4
    if not console.is_terminal:
        console.width = needed + 4
    if needed > console.width and "^" in message:  # a caret points at nothing once its line is wrapped
        console.print(Text(f"{title}: {message}"), soft_wrap=True)
    else:
        console.print(Panel.fit(Text(message), title=title, title_align="left", border_style=color))


def results(metrics: Mapping[str, Any]) -> None:
    """A table of what was measured, on stdout."""
    table = Table("measure", "value", title="results", title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, digits(float(value)))
    Terminal().print(table)


def digits(value: float) -> str:
    """A number as a reader wants it: four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def quieten() -> None:
    """Drop Lightning's adverts, and the warnings that our own design makes pointless."""
    for name in _ADVERTISERS:
        logging.getLogger(name).addFilter(_no_advert)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", f".*{message}.*")


def _no_advert(record: logging.LogRecord) -> bool:
    return not _ADVERT.search(record.getMessage())
