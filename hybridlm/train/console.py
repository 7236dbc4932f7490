"""What the terminal shows of a command: results, messages, and not the noise of the libraries underneath."""

from __future__ import annotations

import logging
import re
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
)
_NOISE = (
    "does not have many workers",
    "args parameter is intended",
    "exists and is not empty",
    "callbacks used to create the checkpoint need to be provided",
    r"`isinstance\(treespec, LeafSpec\)`",
)


def panel(message: str, title: str, color: str) -> None:
    """A framed message on stderr."""
    Console(stderr=True).print(Panel(Text(message), title=title, title_align="left", border_style=color))


def results(metrics: Mapping[str, Any]) -> None:
    """A table of what was measured, on stdout."""
    table = Table("measure", "value", title="results", title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, digits(float(value)))
    Console().print(table)


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
