"""What the errors of the pattern language are made of: the text with a caret, a character's name, the nearest name."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from hybridlm.errors import did_you_mean

WIDTH = 80  # characters of a long line that are quoted

# Letters and signs that look like ASCII ones. Compatibility forms (fullwidth, superscript, ...) need no table.
_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеорсухѕіјΑΒΕΖΗΙΚΜΝΟΡΤΥΧο‐‑‒–—−〈〉‹›∣",
    "ABESIJKMHOPCTYXaeopcyxsijABEZHIKMNOPTYXo------<><>|",
)
_KEYBOARD = {
    letter: (row, column + shift)
    for row, (letters, shift) in enumerate([("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75)])
    for column, letter in enumerate(letters)
}


def quote(text: str, at: int, reason: str) -> str:
    """The line of `text` that holds character `at`, a caret under it, and the reason.

    Only a part of a very long line is shown. What does not print in one column is shown as one replacement character.
    """
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    line = text[start:] if end < 0 else text[start:end]
    column = at - start
    title = "pattern: " if "\n" not in text else f"pattern, line {text.count(chr(10), 0, at) + 1}: "
    if len(line) > WIDTH:
        left = max(0, min(column - WIDTH // 2, len(line) - WIDTH))
        before, after = "..." * (left > 0), "..." * (left + WIDTH < len(line))
        line, column = before + line[left : left + WIDTH] + after, column - left + len(before)
    shown = "".join(char if _one_column(char) else "\N{REPLACEMENT CHARACTER}" for char in line)
    return f"{title}{shown}\n{' ' * (len(title) + column)}^ {reason}"


def _one_column(char: str) -> bool:
    return char.isprintable() and not unicodedata.combining(char) and unicodedata.east_asian_width(char) not in "WF"


def describe(char: str) -> str:
    """A character as an error names it: `'*'`, or `'²' (U+00B2 SUPERSCRIPT TWO, which is not the ASCII '2')`."""
    if char.isascii() and char.isprintable():
        return repr(char)
    name = "byte order mark" if char == "\ufeff" else unicodedata.name(char, "a control character")
    twin = lookalike(char)
    remark = f", which is not the ASCII {twin!r}" if twin else ""
    return f"{char!r} (U+{ord(char):04X} {name}{remark})"


def lookalike(char: str) -> str:
    """The ASCII character that `char`, which is not ASCII, looks like, or ""."""
    twin = unicodedata.normalize("NFKC", char).translate(_LOOKALIKES)
    return twin if len(twin) == 1 and twin.isascii() and twin.isprintable() and twin != char else ""


def nearest(name: str, choices: Sequence[str]) -> str:
    """`did_you_mean`; where nothing is spelled alike, a single letter gets the nearest letter on the keyboard."""
    letters = [choice for choice in choices if choice.lower() in _KEYBOARD]
    if (near := did_you_mean(name, choices)) or name.lower() not in _KEYBOARD or not letters:
        return near
    row, column = _KEYBOARD[name.lower()]

    def distance(letter: str) -> float:
        other_row, other_column = _KEYBOARD[letter.lower()]
        return abs(other_row - row) + abs(other_column - column)

    return f" Did you mean {min(letters, key=distance)!r}?"
