"""How errors of the pattern language quote a text, name a character and suggest a name."""

import pytest

from hybridlm.compose.caret import describe, lookalike, nearest, quote


def test_quote_of_one_line():
    assert quote("(M3X)2", 3, "what") == "pattern: (M3X)2\n            ^ what"
    assert quote("", 0, "what") == "pattern: \n         ^ what"


@pytest.mark.parametrize(
    ("at", "line", "column"),
    [(0, "1: M", 0), (1, "1: M", 1), (2, "2:  X", 0), (3, "2:  X", 1), (4, "2:  X", 2), (5, "3: A", 0)],
)
def test_quote_of_many_lines_shows_the_one(at, line, column):
    quoted, pointer = quote("M\n X\nA", at, "what").split("\n")
    assert quoted == f"pattern, line {line}"
    assert pointer.index("^") == len("pattern, line 1: ") + column


@pytest.mark.parametrize("at", [0, 1, 39, 40, 41, 500, 960, 961, 999])
def test_quote_of_a_long_line_shows_the_part_around(at):
    text = "MA" * 500
    text = text[:at] + "X" + text[at + 1 :]
    quoted, pointer = quote(text, at, "what").split("\n")
    assert len(quoted) <= len("pattern: ") + 80 + 6
    assert quoted[pointer.index("^")] == "X"
    assert quoted.startswith("pattern: ...") == (at > 40)
    assert quoted.endswith("...") == (at < 960)


def test_quote_keeps_the_caret_under_its_character():
    quoted, pointer = quote("漢\x00e\u0301\tX", 5, "what").split("\n")
    assert quoted == "pattern: \ufffd\ufffde\ufffd\ufffdX"
    assert quoted[pointer.index("^")] == "X"


@pytest.mark.parametrize(
    ("char", "text"),
    [
        ("*", "'*'"),
        ("é", "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)"),
        ("М", "'М' (U+041C CYRILLIC CAPITAL LETTER EM, which is not the ASCII 'M')"),
        ("\x00", "'\\x00' (U+0000 a control character)"),
        ("\ufeff", "'\\ufeff' (U+FEFF byte order mark)"),
    ],
)
def test_describe(char, text):
    assert describe(char) == text


@pytest.mark.parametrize(
    ("char", "twin"), [("А", "A"), ("Μ", "M"), ("Ｗ", "W"), ("²", "2"), ("–", "-"), ("‹", "<"), ("é", ""), ("ﬁ", "")]
)
def test_lookalike(char, twin):
    assert lookalike(char) == twin


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("atention", "attention"),
        ("Attention", "attention"),
        ("m", "M"),
        ("X", "A"),
        ("S", "A"),
        ("N", "M"),
        ("zzzzz", ""),
    ],
)
def test_nearest(name, near):
    assert nearest(name, ["attention", "M", "A"]) == (f" Did you mean {near!r}?" if near else "")


def test_nothing_is_near_where_nothing_is_defined():
    assert nearest("X", []) == ""
    assert nearest("X", ["attention"]) == ""
