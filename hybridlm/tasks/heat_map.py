"""A picture of where in a text, and at which length, a model finds what it is asked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from hybridlm.compose.picture import suffix_of
from hybridlm.files import atomic_write
from hybridlm.tasks.evaluate import Answers

WHITE_BELOW = 0.6  # of accuracy: the colours are dark there


def draw(maps: dict[str, tuple[tuple[str, str], list[Answers]]], path: str | Path) -> None:
    """Write the heat maps {task: ((what goes up, what goes right), its cells)} into one file, .svg or .png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.5 * len(maps), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for panel, (name, (axes, found)) in zip(panels, maps.items(), strict=True):
        shown = _draw_map(panel, axes, found)
        panel.set_title(f"{name} (guessing: {found[0].guess:.3g})")
    figure.colorbar(shown, ax=panels, label="accuracy")
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix_of(path), dpi=120)
    atomic_write(path, picture.getvalue())


def table(axes: tuple[str, str], found: list[Answers]) -> tuple[list, list, np.ndarray]:
    """Values that go up, values that go right, and accuracies (up, right), NaN where there was no room."""
    ups, rights = (sorted({cell.difficulty[axis] for cell in found}) for axis in axes)
    values = np.full((len(ups), len(rights)), np.nan)
    for cell in found:
        values[ups.index(cell.difficulty[axes[0]]), rights.index(cell.difficulty[axes[1]])] = cell.accuracy
    return ups, rights, values


def _draw_map(panel, axes: tuple[str, str], found: list[Answers]):
    ups, rights, values = table(axes, found)
    shown = panel.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    panel.set_xticks(range(len(rights)), [f"{right:,}" for right in rights])
    panel.set_yticks(range(len(ups)), [f"{up:g}" for up in ups])
    panel.set(xlabel=axes[1], ylabel=axes[0])
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < WHITE_BELOW else "k")
    return shown
