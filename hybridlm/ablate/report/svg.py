"""What matplotlib writes as SVG, made small: short numbers and ids, no groups of nothing, every style said once.

Only tags are touched, never the text between them.
"""

from __future__ import annotations

import re

TAG = re.compile(r"<[a-zA-Z][^>]*>")
STYLED = re.compile(r"<(?:path|use|g|text)\b[^>]*>")
NUMBER = re.compile(r"-?\d+\.\d+")
REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')
CLIPPED = re.compile(r'(<g clip-path="[^"]*">)((?:(?!</?g\b).)*)</g>\1', re.DOTALL)


def small(svg: str) -> str:
    """The same picture, to a hundredth of a point, without a document type, which is an address on the network."""
    svg = re.sub(r"<!DOCTYPE.*?>\s*", "", svg, flags=re.DOTALL)
    svg = TAG.sub(_short, svg)
    svg = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", svg)  # neither filled nor stroked
    svg = re.sub(r"\s*\n\s*", "\n", svg).replace(">\n<", "><")
    return _merged(_without_bare_groups(_with_short_ids(svg)))


def as_classes(markup: str) -> tuple[str, str]:
    """Markup whose shapes of SVG have a class for each style attribute; and the classes, s0, s1, ..., as CSS."""
    names: dict[str, str] = {}

    def named(style: re.Match) -> str:
        return f'class="{names.setdefault(style[1], f"s{len(names)}")}"'

    markup = STYLED.sub(lambda tag: re.sub(r'\bstyle="([^"]*)"', named, tag[0]), markup)
    return markup, "".join(f".{name}{{{style}}}" for style, name in names.items())


def with_ids_of(prefix: str, svg: str) -> str:
    """Every id and what refers to it with this before it."""
    return TAG.sub(lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}", tag[0]), svg)


def _short(tag: re.Match) -> str:
    """Numbers as short as they may be, paths without needless spaces, no turn by nothing."""
    text = NUMBER.sub(_rounded, tag[0])
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    return re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"\s*([A-Za-z])\s*", r"\1", path[0]).strip(), text)


def _rounded(number: re.Match) -> str:
    short = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _with_short_ids(svg: str) -> str:
    """Ids i0, i1, ..., of what is referred to alone."""
    needed = dict.fromkeys(found[2] for tag in TAG.finditer(svg) for found in REFERENCE.finditer(tag[0]))
    short = {name: f"i{number}" for number, name in enumerate(needed)}

    def renamed(tag: re.Match) -> str:
        text = REFERENCE.sub(lambda found: found[1] + short[found[2]], tag[0])
        return re.sub(r' id="([^"]*)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", text)

    return TAG.sub(renamed, svg)


def _without_bare_groups(svg: str) -> str:
    """Without groups that have no attribute; what is in them stays."""
    bare: list[bool] = []

    def kept(tag: re.Match) -> str:
        if tag[0] == "</g>":
            return "" if bare.pop() else tag[0]
        bare.append(tag[0] == "<g>")
        return "" if bare[-1] else tag[0]

    return re.sub(r"</?g\b[^>]*(?<!/)>", kept, svg.replace("<g/>", ""))


def _merged(svg: str) -> str:
    """Groups that follow one another and are clipped alike as one."""
    while (shorter := CLIPPED.sub(r"\1\2", svg)) != svg:
        svg = shorter
    return svg
