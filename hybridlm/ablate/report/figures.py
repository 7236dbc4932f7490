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
from hybridlm.files import atomic_write

DPI = 160
TITLE = 0.18  # inches of a line of the title
FAMILY = "'DejaVu Sans', Verdana, sans-serif"  # letters of one width: what fits in one fits in all
NUMBER = re.compile(r"\d+\.\d{3,}")
LINE = 52  # letters of a title that fit in a line of the standard width
NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}


def render(charts: Sequence[Chart], folder: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png of every chart; {name: its SVG for a page}. Figures that are not among them go."""
    names = [chart.name for chart in charts]
    assert len(set(names)) == len(names), names
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for chart in charts:
        svg, png = draw(chart)
        atomic_write(folder / f"{chart.name}.svg", svg)
        atomic_write(folder / f"{chart.name}.png", png)
        pictures[chart.name] = inline(svg.decode(), chart)
    for stale in [path for path in folder.glob("*.[sp][vn]g") if path.stem not in names]:
        stale.unlink()
    return pictures


def draw(chart: Chart) -> tuple[bytes, bytes]:
    """A chart as SVG and as PNG."""
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
    return _plain(files[0].decode(), chart).encode(), files[1]


def _plain(svg: str, chart: Chart) -> str:
    """Without a document type, which is an address on the network, and with a title and a description."""
    svg = re.sub(r"<!DOCTYPE.*?>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FAMILY}", svg)
    svg = re.sub(r"(font: [\w. ]*px) [^;\"]*", rf"\1 {FAMILY}", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"<(?:path|use|g|text)\b[^>]*>", lambda tag: NUMBER.sub(_rounded, tag[0]), svg)
    svg = _only_needed_ids(svg)
    said = f"<title>{escape(chart.title)}</title><desc>{escape(chart.alt)}</desc>"
    return re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}{said}", svg, count=1)


def _rounded(number: re.Match) -> str:
    """A coordinate to a hundredth of a point."""
    return f"{float(number[0]):.2f}"


def _only_needed_ids(svg: str) -> str:
    """Without ids that nothing refers to, groups of nothing and spaces that nobody sees."""
    needed = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in needed else "", svg)
    svg = re.sub(r"\s*<g/>", "", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return re.sub(r">\n<", "><", svg)


def inline(svg: str, chart: Chart) -> str:
    """A file's SVG as an element of a page: in its letters and colours, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    width, height = (float(size) for size in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    svg = re.sub(r"<defs><style.*?</style></defs>", "", svg, count=1, flags=re.DOTALL)  # would be the whole page's
    svg = re.sub(rf'<g><path d="[^"]*" style="fill: {PAPER}"/></g>', "", svg, count=1)
    svg = re.sub(r"; font-family: [^;\"]*", "", svg)
    svg = re.sub(r"font: ([\w ]*?) ?([\d.]+)px [^;\"]*", r"font-weight: \1; font-size: \2px", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1figure-{chart.name}-", svg)
    svg = svg.replace("<title>", f'<title id="figure-{chart.name}-title">', 1)
    svg = svg.replace("<desc>", f'<desc id="figure-{chart.name}-desc">', 1)
    named = f'role="img" aria-labelledby="figure-{chart.name}-title figure-{chart.name}-desc"'
    head = f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 4 / 3:.0f}px" {named}>'
    svg = re.sub(r"<svg[^>]*>", lambda found: head, svg, count=1)
    return as_variables(svg).replace("xlink:href", "href")
