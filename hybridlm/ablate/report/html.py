"""A report as one HTML file: its own style, its figures within, no script, nothing from the network.

Every text goes through `_text`, which escapes it: a name from a study file is never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from html import escape

from hybridlm.ablate.report.blocks import Arm, Badge, Block, Cell, Chart, Code, Document, Key, Paragraph, Section, Strip
from hybridlm.ablate.report.blocks import Table as TableBlock
from hybridlm.ablate.report.figures import on_screen
from hybridlm.ablate.report.page_style import CSS
from hybridlm.ablate.report.strip import strip_svg
from hybridlm.ablate.report.style import css
from hybridlm.ablate.report.svg import as_classes
from hybridlm.ablate.report.words import readable
from hybridlm.compose.picture import MLP_COLOUR, colours

SIGNS = {"supported": "✓", "refuted": "✗", "undetermined": "?"}
MARKS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟")
WHOLE = 30  # letters of an arm's name that stand in one line
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(document: Document, pictures: Mapping[str, str]) -> str:
    """The file's text. pictures: the SVG of each chart by its name."""
    parts = [_section(section, pictures) for section in document.sections if not section.left_out]
    sections, rules = as_classes("".join(parts))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(document.title)}</title>\n<style>{css()}{CSS}{on_screen(rules)}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">To the findings</a>\n{_header(document)}\n'
        f'<main id="content">\n{sections}{_left_out(document.sections)}</main>\n</body>\n</html>\n'
    )


def _header(document: Document) -> str:
    links = "".join(
        f'<li><a href="#{section.anchor}">{_text(section.title)}</a></li>'
        for section in document.sections
        if not section.left_out
    )
    return (
        f'<header>\n<h1>{_text(document.title)}</h1>\n<p class="question">{_text(document.question)}</p>\n'
        f'<p class="headline">{_text(document.headline)}</p>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>'
    )


def _section(section: Section, pictures: Mapping[str, str]) -> str:
    """Charts that follow one another stand side by side where there is room."""
    parts: list[str] = []
    open_row = False
    for block in section.blocks:
        chart = isinstance(block, Chart)
        parts += ['<div class="charts">'] * (chart and not open_row) + ["</div>"] * (open_row and not chart)
        parts.append(_chart(block, pictures[block.name]) if isinstance(block, Chart) else _block(block))
        open_row = chart
    parts += ["</div>"] * open_row
    return _framed(section.anchor, section.title, "".join(parts))


def _framed(anchor: str, title: str, inside: str) -> str:
    head = f'<h2 id="{anchor}-title">{_text(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n{head}\n{inside}\n</section>\n'


def _left_out(sections: Sequence[Section]) -> str:
    out = [section for section in sections if section.left_out]
    if not out:
        return ""
    lines = "".join(f"<li><b>{_text(section.title)}</b>: {_text(section.left_out)}</li>" for section in out)
    return _framed("left-out", "Left out", f"<ul>{lines}</ul>")


def _chart(chart: Chart, picture: str) -> str:
    wide = ' class="wide"' if chart.size[0] > 6 else ""
    return (
        f"<figure{wide}>\n{picture}\n<figcaption>{_text(chart.caption)}</figcaption>\n{_block(chart.table)}</figure>\n"
    )


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block))


@_block.register
def _(block: Paragraph) -> str:
    return f"<p>{_text(block.text)}</p>\n"


@_block.register
def _(block: Key) -> str:
    chips = [*zip(block.mixers, colours(block.mixers), strict=True), *[("MLP", MLP_COLOUR)] * block.mlp]
    told = "".join(
        f'<li><span class="chip" style="background:{colour}"></span>{_text(name)}</li>' for name, colour in chips
    )
    return f'<ul class="key" aria-label="Colours of the patterns">{told}</ul>\n'


@_block.register
def _(block: Code) -> str:
    text = f'<pre tabindex="0"><code>{_lines(block.text)}</code></pre>'
    if block.folded:
        return f"<details><summary>{_text(block.title)}</summary>{text}</details>\n"
    return f'<p class="name">{_text(block.title)}</p>{text}\n'


@_block.register
def _(block: TableBlock) -> str:
    sides = ["n" if i in block.numeric else "" for i in range(len(block.head))]
    head = "".join(
        f'<th scope="col"{_class(side)}>{_text(name)}</th>' for name, side in zip(block.head, sides, strict=True)
    )
    rows = "".join(f"<tr>{_row(row, sides)}</tr>\n" for row in block.rows)
    title = "" if block.folded else f"<caption>{_text(block.title)}</caption>"
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(block.title)}">'
        f"<table{_class('stack' * block.stacked)}>{title}"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )
    return f"<details><summary>{_text(block.title)}</summary>{table}</details>\n" if block.folded else table + "\n"


def _row(row: Sequence[Cell], sides: Sequence[str]) -> str:
    first, *rest = zip(row, sides, strict=True)
    cells = "".join(f"<td{_class(side)}>{_cell(cell)}</td>" for cell, side in rest)
    return f'<th scope="row"{_class(first[1])}>{_cell(first[0])}</th>{cells}'


def _class(side: str) -> str:
    return f' class="{side}"' if side else ""


@singledispatch
def _cell(cell: Cell) -> str:
    raise TypeError(type(cell))


@_cell.register
def _(cell: str) -> str:
    return _text(cell)


@_cell.register
def _(cell: Arm) -> str:
    colour = "other" if cell.mark is None else f"arm-{cell.mark}"
    sign = "·" if cell.mark is None else MARKS[cell.mark]
    mark = f'<span aria-hidden="true" style="color:var(--{colour})">{sign}</span>'
    kind = "arm" if len(cell.name) <= WHOLE else "arm long"
    return f'<span class="{kind}">{mark} {_text(cell.name)}</span>'


@_cell.register
def _(cell: Badge) -> str:
    sign = f'<span aria-hidden="true">{SIGNS[cell.verdict]}</span>'
    return f'<span class="badge {cell.verdict}">{sign} {cell.verdict}</span>'


@_cell.register
def _(cell: Strip) -> str:
    return f'<span class="strip">{strip_svg(cell)}<code>{_text(cell.text)}</code></span>'


def _text(text: str) -> str:
    return escape(readable(text))


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())
