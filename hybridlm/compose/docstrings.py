"""What a docstring says of each field or argument: the text of `hybridlm schema` and of every `--help`."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"\s*([a-z]\w*(?:, [a-z]\w*)*): +(\S.*)")
_SECTION = re.compile(r"\s*(Args|Raises|Returns):\s*$")


def field_docs(docstring: str) -> dict[str, str]:
    """{name: text} of the lines `name: text` or `name, other: text`; what is indented deeper continues an entry."""
    docs: dict[str, str] = {}
    names: list[str] = []
    indent = 0
    for line in inspect.cleandoc(docstring).splitlines():
        here = len(line) - len(line.lstrip())
        if names and line.strip() and here > indent:
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
        elif found := _ENTRY.match(line):
            names, indent = found[1].split(", "), here
            docs |= dict.fromkeys(names, found[2])
        else:
            names = []
        if (section := _SECTION.match(line)) and section[1] != "Args":
            break
    return docs


def field_docs_of(cls: type) -> dict[str, str]:
    """field_docs of a class and of those it inherits from; its own come first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        found |= field_docs(base.__dict__.get("__doc__") or "")
    return found


def first_sentence(docstring: str | None) -> str:
    """The first sentence, on one line."""
    text = " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z)\]0-9])\.(?:\s|$)", text, maxsplit=1)[0]
