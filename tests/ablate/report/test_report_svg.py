"""Figures made small: the same picture, text as it was, every style said once."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from hybridlm.ablate.report.blocks import Chart, Table
from hybridlm.ablate.report.figures import alone, draw, inline, on_screen
from hybridlm.ablate.report.style import INK, NAMED
from hybridlm.ablate.report.svg import as_classes, small, with_ids_of

SAID = 'href="#mark" d="M 1.23456 2" id="mark" style="fill: red" url(#mark) #174ebf font-family: x; 0.123456'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('<path d="M 0.1234 -0.001\nL 10.50 2\nz\n"/>', '<path d="M0.12 0L10.5 2z"/>'),
        (
            '<path d="M 0 2.75\nC 0.73 2.75 1.43 2.46 1.94 1.94\n"/>',
            '<path d="M0 2.75C0.73 2.75 1.43 2.46 1.94 1.94"/>',
        ),
        ('<use x="3.00" y="-1.005"/>', '<use x="3" y="-1"/>'),
        ('<text transform="rotate(-0 11.8 1)" x="1">0.12345</text>', '<text x="1">0.12345</text>'),
        ('<text transform="rotate(-90 11.80 1)">a</text>', '<text transform="rotate(-90 11.8 1)">a</text>'),
        ('<g>\n <g id="axes">\n  <use/>\n </g>\n <g/>\n</g>', "<use/>"),
        ('<g><g style="opacity: 0.5"><use/></g></g>', '<g style="opacity: 0.5"><use/></g>'),
        ('<path d="M 0 0" style="fill: none"/><use/>', "<use/>"),
        ('<path d="M0 0" style="fill: none; stroke: red"/>', '<path d="M0 0" style="fill: none; stroke: red"/>'),
        ('<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN"\n "http://www.w3.org/x.dtd">\n<g/>', ""),
    ],
)
def test_small(given, expected):
    assert small(f"<svg>{given}</svg>") == f"<svg>{expected}</svg>"


def test_ids_are_short_and_only_those_that_are_needed():
    given = (
        '<g id="axes_1" clip-path="url(#p40f2d827a4)"><use xlink:href="#m1"/></g><path id="m1"/><a id="p40f2d827a4"/>'
    )
    assert small(given) == '<g clip-path="url(#i0)"><use xlink:href="#i1"/></g><path id="i1"/><a id="i0"/>'


def test_neighbours_that_are_clipped_alike_are_one_group():
    """Four of them are one, in their order; another clip and another attribute are not theirs."""
    groups = "".join(f'<g clip-path="url(#a)"><use x="{i}"/></g>' for i in range(4))
    end = '<g clip-path="url(#b)"><use/></g><g style="opacity: 0.5"><use/></g><g style="opacity: 0.5"><use/></g>'
    one = "".join(f'<use x="{i}"/>' for i in range(4))
    assert small(groups + end) == f'<g clip-path="url(#i0)">{one}</g>{end.replace("#b", "#i1")}'


def test_styles_are_said_once():
    given = '<use style="a: 1"/><text style="b: 2" x="1">t</text><path d="M0 0" style="a: 1"/><p style="a: 1">'
    markup, rules = as_classes(given)
    assert markup == '<use class="s0"/><text class="s1" x="1">t</text><path d="M0 0" class="s0"/><p style="a: 1">'
    assert rules == ".s0{a: 1}.s1{b: 2}"


def test_text_is_never_touched():
    svg = f'<svg><use xlink:href="#mark"/><path id="mark" style="fill: blue"/><text>{SAID}</text></svg>'
    assert f"<text>{SAID}</text>" in with_ids_of("f1-", as_classes(small(svg))[0])


def test_a_figure_has_its_styles_as_classes():
    """In a file and in a page: no shape has styles of its own, classes have rules, a page's colours are variables."""
    chart = Chart(
        "one", "A title", "what it shows", "", lambda axes: axes.plot([1, 2], color=NAMED[2]), Table("", [], [])
    )
    svg, _ = draw(chart)
    file = alone(svg, chart)
    style = next(element for element in ET.fromstring(file).iter() if element.tag.endswith("}style"))
    assert INK in style.text
    assert NAMED[2] in style.text
    page, rules = as_classes(inline(svg, chart, 7))
    assert not re.search("#[0-9a-f]{6}", page)
    rules = on_screen(rules)
    assert "var(--arm-2)" in rules
    assert not re.search("#[0-9a-f]{6}|font-family", rules)
    for markup, said in ((file, style.text), (page, rules)):
        used = re.findall(r'class="(\w+)"', markup)
        assert len(used) > 10
        assert set(used) == set(re.findall(r"\.(s\d+)\{", said))
        assert not re.search(r"<(path|use|g|text)\b[^>]*style=", markup)
    assert set(re.findall(r' id="([^"]*)"', page)) >= {"f7-title", "f7-desc", "f7-i0"}
