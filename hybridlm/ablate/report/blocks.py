"""What a report is made of, before it is HTML or Markdown: sections, and the blocks in them.

Everything here holds plain text. Nothing is escaped yet: html.py and markdown.py do that, each in its own way and for
everything, as names and questions come from a study file that anyone may have written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = ("supported", "refuted", "undetermined")
WIDTH = 4.9  # inches of a figure: two stand side by side on a desk, one fits a telephone


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to be copied: a command, a file. title: what it is; folded: shown when asked for."""

    text: str
    title: str
    folded: bool = False


@dataclass(frozen=True)
class Strip:
    """A pattern as boxes from the bottom of the stack (left) to its top, and its text.

    layers: of each layer the types of its mixers, side by side; and of its MLP, or None.
    """

    text: str
    layers: tuple[tuple[tuple[str, ...], str | None], ...]


@dataclass(frozen=True)
class Arm:
    """An arm's name, in its colour wherever it stands. mark: its number in the palette, or None beside the named."""

    name: str
    mark: int | None


@dataclass(frozen=True)
class Badge:
    """A verdict: a word with a sign, never a colour alone."""

    verdict: str


Cell = str | Strip | Arm | Badge


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    numeric: indices of columns whose figures stand right.
    folded:  shown when asked for.
    stacked: on a narrow screen its cells stand one under another; for tables of sentences.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()
    folded: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure that can be read alone.

    name:    of its files, figures/NAME.svg and .png.
    title:   the finding, in one sentence.
    caption: what is shown, of how many, and which interval.
    alt:     what one would say to somebody who cannot see it.
    draw:    puts it on axes; they have the house style already.
    size:    inches, without the title.
    table:   the same numbers.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]
    table: Table
    size: tuple[float, float] = (WIDTH, 3.0)


@dataclass(frozen=True)
class Key:
    """What the colours of strips mean. mixers: their types; mlp: whether there are MLPs."""

    mixers: Sequence[str]
    mlp: bool


Block = Paragraph | Code | Table | Chart | Key


@dataclass(frozen=True)
class Section:
    """A part of the report. left_out: why it holds nothing, where it does not; it is then said, not shown."""

    anchor: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    left_out: str = ""

    @property
    def charts(self) -> list[Chart]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Chart)]


@dataclass(frozen=True)
class Document:
    """A whole report. headline: what its verdicts come to, in one sentence."""

    title: str
    question: str
    headline: str
    sections: Sequence[Section]

    @property
    def charts(self) -> list[Chart]:
        """Its figures, in order."""
        return [chart for section in self.sections for chart in section.charts]
