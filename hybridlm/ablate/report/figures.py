"""Charts as files and as part of a page: each is drawn once as SVG, once as PNG.

The page's copy has no paper of its own, colours that follow the screen, and ids that no other figure has.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path

from hybridlm.ablate.report.blocks import WIDTH, Chart
from hybridlm.ablate.report.style import PAPER, STYLE, as_variables
from hybridlm.ablate.report.svg import as_classes, small, with_ids_of
from hybridlm.files import atomic_write

DPI = 160
TITLE = 0.18  # inches of a line of the title
FAMILY = "'DejaVu Sans', Verdana, sans-serif"  # letters of one width: what fits in one fits in all
LINE = 52  # letters of a title that fit in a line of the standard width
NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}


def render(charts: Sequence[Chart], folder: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png of every chart; {name: its SVG for a page}. Figures that are not among them go."""
    names = [chart.name for chart in charts]
    assert len(set(names)) == len(names), names
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for number, chart in enumerate(charts, 1):
        svg, png = draw(chart)
        atomic_write(folder / f"{chart.name}.svg", alone(svg, chart).encode())
        atomic_write(folder / f"{chart.name}.png", png)
        pictures[chart.name] = inline(svg, chart, number)
    for stale in [path for path in folder.glob("*.[sp][vn]g") if path.stem not in names]:
        stale.unlink()
    return pictures


def draw(chart: Chart) -> tuple[str, bytes]:
    """A chart as SVG, with style attributes, and as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font has not
        title = textwrap.wrap(chart.title, int(LINE * chart.size[0] / WIDTH))
        figure = Figure(figsize=(chart.size[0], chart.size[1] + TITLE * len(title)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        chart.draw(axes)
        figure.suptitle("\n".join(title), x=0.015, ha="left", size=10.5, weight="bold")
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)  # the files share one layout
        files = []
        for suffix, metadata in (("svg", NOTHING), ("png", {"Title": chart.title, "Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
            files.append(buffer.getvalue())
    return small(files[0].decode()), files[1]


def alone(svg: str, chart: Chart) -> str:
    """A figure as a file: with a title, a description, and its styles, in letters that are nearly everywhere."""
    svg, rules = as_classes(svg)
    rules = re.sub(r"font-family: [^;}]*", f"font-family: {FAMILY}", rules)
    rules = re.sub(r"(font: [\w. ]*px) [^;}]*", rf"\1 {FAMILY}", rules)
    said = f"<title>{escape(chart.title)}</title><desc>{escape(chart.alt)}</desc>"
    svg = re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}{said}", svg, count=1)
    return svg.replace("</style>", f"{rules}</style>", 1)


def inline(svg: str, chart: Chart, number: int) -> str:
    """A figure as an element of a page: without paper and styles of its own, with ids that no other figure has.

    What is drawn has style attributes, of which the page makes classes and `on_screen` the colours and letters.
    """
    width, height = (float(size) for size in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs><style.*?</style></defs>", "", svg, count=1, flags=re.DOTALL)  # would be the whole page's
    svg = re.sub(rf'<path d="[^"]*" style="fill: {PAPER}"/>', "", svg, count=1)
    svg = with_ids_of(f"f{number}-", svg).replace("xlink:href", "href")
    head = (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 4 / 3:.0f}px" role="img" '
        f'aria-labelledby="f{number}-title f{number}-desc"><title id="f{number}-title">{escape(chart.title)}</title>'
        f'<desc id="f{number}-desc">{escape(chart.alt)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda found: head, svg, count=1)


def on_screen(rules: str) -> str:
    """The styles of figures in a page: in its letters, in colours that follow the screen."""
    rules = re.sub(r"; font-family: [^;}]*", "", rules)
    rules = re.sub(r"font: ([\w ]*?) ?([\d.]+)px [^;}]*", r"font-weight: \1; font-size: \2px", rules)
    return as_variables(rules)
