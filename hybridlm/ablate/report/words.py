"""Numbers and names as a reader wants them."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction

MOST = 120  # characters of a name that is shown; the tables of results.csv hold it whole


def readable(text: object, most: int | None = None) -> str:
    """Text without characters that are not seen: controls, marks that turn the reading direction, lone surrogates.

    Each becomes U+FFFD; a line break or tab is a space. most: characters after which it ends with an ellipsis.
    """
    plain = "".join(c if c.isprintable() else " " if c in "\n\r\t" else "\ufffd" for c in str(text))
    return plain if most is None or len(plain) <= most else plain[: most - 1] + "…"


def named(name: str, most: int = 28) -> str:
    """A name within a sentence: in quotes if it holds a comma, which would end it."""
    text = readable(name, most)
    return f"‘{text}’" if "," in text else text


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, thousands separated; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e7:
        return minus(f"{value:.{digits - 1}g}")
    return minus(f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}")


def fixed(value: float | None, places: int = 3) -> str:
    """A number with so many decimal places, for columns whose figures are compared."""
    return "–" if value is None or not math.isfinite(value) else minus(f"{value:.{places}f}")


def signed(value: float, places: int = 3) -> str:
    """A difference, with its sign."""
    return "–" if not math.isfinite(value) else minus(f"{value:+.{places}f}")


def minus(text: str) -> str:
    """The sign as it is set: a minus is as wide as a plus."""
    return text.replace("-", "−") if "e" not in text else text


def interval(low: float, high: float, places: int = 3) -> str:
    """Both ends of an interval; a dash without."""
    return f"{fixed(low, places)} to {fixed(high, places)}" if math.isfinite(low) and math.isfinite(high) else "–"


def probability(p: float) -> str:
    """A p value; nobody reads more digits than these."""
    return "–" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float) -> str:
    """A number of things in k, M, G, T: three significant digits."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes in the largest unit that leaves one or more of them."""
    power = min(max(int(value).bit_length() - 1, 0) // 10, 6)
    return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[power]}"


def share(value: float) -> str:
    """A ratio as a fraction of small numbers where it is one, such as 1/4; else in percent."""
    near = Fraction(value).limit_denominator(128)
    if abs(near - value) > 1e-9:
        return f"{value:.1%}"
    return str(near)


def duration(seconds: float) -> str:
    """How long something took."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str], most: int = 4) -> str:
    """a, b and c; from `most` on, how many more."""
    names = list(names)
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(count: int, name: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def slug(name: str) -> str:
    """A name as part of a file's name and of an id: letters, digits and hyphens, and a hash where others were lost."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode(errors='replace')):08x}".lstrip("-")
