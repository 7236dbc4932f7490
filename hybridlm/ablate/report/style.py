"""The one style of every figure: colours, marks, lines, letters.

An arm has the same colour, mark and dash in every figure. The colours were searched for so that any two are far apart
in CIELAB for all kinds of colour vision, and stand out from the paper; a test keeps that. In grey, marks and dashes
tell arms apart. In a page each colour is a CSS variable with a second value for dark screens; files have white paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, FAINT, GRID, PAPER = "#1f2933", "#66727f", "#e3e8ed", "#fffffe"
BAND = "#9aa5b1"
OTHER = "#8a94a0"  # arms beside those that have a colour of their own
NAMED = ("#174ebf", "#832c02", "#078450", "#a35088", "#a88b0c", "#698bff", "#330d7b", "#e40f4a")
DARK = {
    INK: "#e6eaee",
    FAINT: "#9fabb7",
    GRID: "#2c353e",
    PAPER: "#14191e",
    BAND: "#8d99a6",
    OTHER: "#7c8894",
    **dict(
        zip(
            NAMED,
            ("#4499d9", "#e69c37", "#2fffaa", "#b08a9f", "#fff200", "#c9f3ff", "#8d6bff", "#dd5e52"),
            strict=True,
        )
    ),
}
VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper", BAND: "band", OTHER: "other"} | {
    colour: f"arm-{i}" for i, colour in enumerate(NAMED)
}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.6)),
    (0, (1.4, 1.3)),
    (0, (6, 1.4, 1.4, 1.4)),
    (0, (3, 1.2)),
    (0, (8, 2, 2, 2, 2, 2)),
    (0, (1, 2.2)),
    (0, (4, 1, 1, 1)),
)
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "hybridlm",
}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn. mark: its number in the palette, None for one of many others; label: of what it stands for.

    The label is the arm's own name, or a value of an axis that it shares with others, which then look alike.
    """

    mark: int | None
    label: str = ""

    @property
    def colour(self) -> str:
        """Of line and mark."""
        return OTHER if self.mark is None else NAMED[self.mark]

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of a line: colour, mark, dash; those beside the named are thin."""
        if self.mark is None:
            return {"color": OTHER, "marker": "", "linestyle": "solid", "linewidth": 0.8, "zorder": 1.5}
        return {"color": self.colour, "marker": MARKS[self.mark], "linestyle": DASHES[self.mark], "zorder": 3}

    @property
    def point(self) -> dict[str, Any]:
        """Keywords of a point with its interval."""
        mark = "o" if self.mark is None else MARKS[self.mark]
        return {"color": self.colour, "marker": mark, "linestyle": "none", "zorder": 2.5 + (self.mark is not None)}


def looks(arms: Mapping[str, Mapping[str, Any]], first: Sequence[str]) -> dict[str, Look]:
    """{arm: its look}, of {arm: its coordinates}.

    Up to eight arms have a colour each. Of more, the arms with the same value of an axis share one: of the axis of
    names with the most values up to eight (a placement, a kind of mixer), else of numbers. Without such an axis those
    that come `first` (the reference, arms of claims) have one each, and the others none.
    """
    if len(arms) <= len(NAMED):
        return {arm: Look(mark, arm) for mark, arm in enumerate(arms)}
    if axis := _axis(list(arms.values())):
        marks = {value: i for i, value in enumerate(dict.fromkeys(str(where[axis]) for where in arms.values()))}
        return {arm: Look(marks[str(where[axis])], f"{axis}={where[axis]}") for arm, where in arms.items()}
    named = [arm for arm in dict.fromkeys(first) if arm in arms][: len(NAMED)]
    return {arm: Look(named.index(arm) if arm in named else None, arm) for arm in arms}


def _axis(places: Sequence[Mapping[str, Any]]) -> str | None:
    """The axis that colours tell."""
    found: list[tuple[bool, int, str]] = []
    for axis in [axis for axis in places[0] if all(axis in where for where in places)]:
        values = [where[axis] for where in places]
        if 1 < len(set(map(str, values))) <= len(NAMED):
            found.append((any(isinstance(value, str) for value in values), len(set(map(str, values))), axis))
    return max(found)[2] if found else None


def css() -> str:
    """The colours as CSS variables: on paper and light screens, and on dark ones."""
    light = "".join(f"--{name}:{colour};" for colour, name in VARIABLES.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for colour, name in VARIABLES.items())
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def as_variables(svg: str) -> str:
    """An SVG's colours as those variables, for a page that defines them."""
    return re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]})", svg)
