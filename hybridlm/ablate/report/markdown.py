"""A report as Markdown for a docs page: the same sections, figures by their files, every text escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch

from hybridlm.ablate.report.blocks import (
    Arm,
    Badge,
    Block,
    Cell,
    Chart,
    Code,
    Document,
    Key,
    Paragraph,
    Section,
    Strip,
    Table,
)
from hybridlm.ablate.report.words import readable


def text(document: Document) -> str:
    """The file's text."""
    parts = [f"# {_text(document.title)}", _text(document.question), f"**{_text(document.headline)}**"]
    parts += [_section(section) for section in document.sections if not section.left_out]
    out = [f"* **{_text(one.title)}**: {_text(one.left_out)}" for one in document.sections if one.left_out]
    parts += ["## Left out", "\n".join(out)] if out else []
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {_text(section.title)}", *filter(None, map(_block, section.blocks))])


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block))


@_block.register
def _(block: Paragraph) -> str:
    return _text(block.text)


@_block.register
def _(block: Key) -> str:
    """Patterns are letters here."""
    return ""


@_block.register
def _(block: Code) -> str:
    """Indented, so that no text in it can end it."""
    lines = "\n".join(f"    {readable(line)}" for line in block.text.splitlines())
    return f"{_text(block.title)}:\n\n{lines}"


@_block.register
def _(block: Table) -> str:
    head = _row(block.head)
    sides = _row(["--:" if i in block.numeric else "---" for i in range(len(block.head))], plain=True)
    return "\n".join([f"{_text(block.title)}:", "", head, sides, *[_row(row) for row in block.rows]])


@_block.register
def _(block: Chart) -> str:
    picture = f"![{_text(block.alt)}](figures/{block.name}.svg)"
    return f"**{_text(block.title)}**\n\n{picture}\n\n{_text(block.caption)}\n\n{_block(block.table)}"


def _row(cells: Sequence[Cell], plain: bool = False) -> str:
    return f"| {' | '.join(str(cell) if plain else _cell(cell) for cell in cells)} |"


@singledispatch
def _cell(cell: Cell) -> str:
    raise TypeError(type(cell))


@_cell.register
def _(cell: str) -> str:
    return _text(cell)


@_cell.register
def _(cell: Arm) -> str:
    return _text(cell.name)


@_cell.register
def _(cell: Badge) -> str:
    return f"**{cell.verdict}**"


@_cell.register
def _(cell: Strip) -> str:
    return _text(cell.text)


def _text(text: str) -> str:
    """Every sign that means something to Markdown with a backslash before it; angle brackets and & as HTML has them."""
    plain = readable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$])|(?<![\w.])([#+!-])(?=\s|\[)|(^\d+)(\.)(?=\s|$)", _escaped, plain)


def _escaped(found: re.Match) -> str:
    return f"{found[3]}\\." if found[3] else f"\\{found[0]}"
