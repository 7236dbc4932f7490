"""The pattern language: a stack of layers in one line of text. Text in, a small tree out; no torch.

    pattern   = item+
    item      = (block | parallel | "(" item+ ")") suffix* count?
    block     = letter | "[" name "]" | "-"             "-" is an MLP alone
    parallel  = "<" member ("|" member)+ ">"            mixers side by side on one pre-norm
    member    = (letter | "[" name "]") override?
    suffix    = "@" label | override                    each at most once, not after a group
    override  = "{" YAML flow mapping "}"               changes settings of this occurrence
    count     = ASCII digits, 1 to 4096, without a leading zero
    letter    = one of a-z A-Z
    name      = letter (letter | digit | "_" | "-")*    at most 64 characters
    label     = (lower-case letter | "_")+              one set of weights wherever the label stands

Spaces and line breaks between these tokens mean nothing. A label has no digits and no capitals, so that `A@shared3` is
three times `A@shared` and `MA@sharedM` goes on with the block M; write a space before a lower-case letter.

    (M3A)2             M M M A M M M A
    [ssm]4 -           four blocks named ssm, then an MLP alone
    W{window: 128}2    two W, each with a window of 128
    (M3 A@shared)2     both A have the same weights, each its own state
    <M|A>{combine: norm_mean}

The text of a pattern is canonical (no spaces, no group and no count that changes nothing, label before override) and
parses to the same tree. Lengths are computed, never counted out: a stack has at most 4,096 layers, brackets nest at
most 16 deep, the text is at most 4 KiB. Whatever breaks a rule is a PatternError that points at its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

from hybridlm.compose.caret import describe, lookalike, nearest, quote
from hybridlm.compose.strict_yaml import YamlError, compose
from hybridlm.compose.tree import MLP_ALONE, Block, Item, Parallel, Pattern, Place, Repeat, compact
from hybridlm.errors import PatternError

__all__ = ["MLP_ALONE", "Block", "Item", "Parallel", "Pattern", "Place", "Repeat", "compact", "parse"]

MAX_LAYERS = 4096
MAX_DEPTH = 16
MAX_BYTES = 4096
MAX_NAME = 64


def parse(text: str, names: Iterable[str] | None = None) -> Pattern:
    """The tree of the pattern `text`; every block must be in `names`, the defined ones (None: any name will do).

    PatternError: the text breaks the grammar or a limit, or names an unknown block.
    """
    if not isinstance(text, str):
        hint = "; in YAML, put a pattern in quotes" if isinstance(text, (list, dict)) else ""
        raise PatternError(f"pattern: expected text such as '(M3A)2', got {type(text).__name__}{hint}")
    return _Parser(text, None if names is None else tuple(names)).pattern()


_LETTER = re.compile(r"[A-Za-z]")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LABEL = re.compile(r"[a-z_]+")
_COUNT = re.compile(r"[0-9]+")
_SPACE = re.compile(r"[ \t\r\n]*")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_HINTS = {
    "*": "; '*' is attention in Megatron's notation, which is read with `notation: megatron`",
    "/": "; '/' is of Megatron's notation, which is read with `notation: megatron`",
    "|": "; '|' stands between the members of <M|A>",
    "@": "; a label follows a block, as in A@shared",
    "{": "; an override follows a block, as in W{window: 128}",
    ",": "; blocks stand side by side without commas",
}


def _size(text: str) -> int:
    """Bytes of UTF-8, near enough for text that is far too long or not legal."""
    return len(text) if len(text) > MAX_BYTES else len(text.encode("utf-8", "replace"))


class _Parser:
    """Recursive descent: `at` is the next character, and one method reads one rule of the grammar."""

    def __init__(self, text: str, names: tuple[str, ...] | None):
        self.text, self.names = text, names
        self.at = 0
        self.opened: list[int] = []  # the places of the groups that are open

    def fail(self, reason: str, at: int | None = None) -> NoReturn:
        raise PatternError(quote(self.text, self.at if at is None else at, reason))

    def peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        self.at = _SPACE.match(self.text, self.at).end()
        return self.text[self.at : self.at + 1]

    def take(self, token: re.Pattern[str]) -> str:
        """The longest `token` right here, perhaps empty, and step over it."""
        match = token.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match[0] if match else ""

    def pattern(self) -> Pattern:
        if _size(self.text) > MAX_BYTES:
            self.fail(f"the text is longer than {MAX_BYTES:,} bytes", min(len(self.text), MAX_BYTES))
        pattern = Pattern(self.sequence())
        if self.peek():
            self.fail("')' closes nothing")
        if "{" in self.text and _size(str(pattern)) > MAX_BYTES:  # 1e15 prints as 1000000000000000.0
            self.fail(f"the canonical text is longer than {MAX_BYTES:,} bytes", 0)
        return pattern

    def sequence(self) -> tuple[Item, ...]:
        """Items up to a closing bracket or the end."""
        items: list[Item] = []
        length = 0
        while self.peek() not in ("", ")"):
            start = self.at
            items += (item := self.item())
            length += sum(part.length for part in item)
            self.check_length(length, start)
        if not items:
            self.fail("empty; a pattern is made of blocks, such as '(M3A)2'")
        return tuple(items)

    def check_length(self, length: int, at: int) -> None:
        if length > MAX_LAYERS:
            self.fail(f"{length:,} layers up to here; a pattern has at most {MAX_LAYERS:,}", at)

    def item(self) -> tuple[Item, ...]:
        """One item; a group without a count is no more than its items."""
        char = self.peek()
        if char == "(":
            items = self.group()
        elif char == "<":
            items = (self.suffixes(self.parallel()),)
        elif char == MLP_ALONE:
            self.at += 1
            items = (self.suffixes(Block(name=MLP_ALONE)),)
        else:
            items = (self.suffixes(self.block()),)
        return self.counted(items)

    def group(self) -> tuple[Item, ...]:
        opened = self.at
        if len(self.opened) == MAX_DEPTH:
            self.fail(f"brackets nest deeper than {MAX_DEPTH}")
        self.opened.append(self.at)
        self.at += 1
        items = self.sequence()
        if not self.peek():
            self.fail("'(' is opened here and never closed", opened)
        self.opened.pop()
        self.at += 1
        if self.peek() in ("@", "{"):
            self.fail("a label or an override belongs to a block, not to a group")
        return items

    def counted(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """`items` as often as the count says that follows, if one does."""
        self.peek()
        start = self.at
        digits = self.take(_COUNT)
        if not digits:
            return items
        if digits[0] == "0":
            self.fail("a count has no leading zero" if digits.strip("0") else "a count is at least 1", start)
        if len(digits) > len(str(MAX_LAYERS)):
            self.fail(f"a count is at most {MAX_LAYERS:,}", start)
        count = int(digits)
        self.check_length(count * sum(item.length for item in items), start)
        return items if count == 1 else (Repeat(items=items, count=count),)

    def block(self) -> Block:
        start = self.at
        if self.peek() == "[":
            name = self.bracket_name()
        elif not (name := self.take(_LETTER)):
            self.unexpected()
        if self.names is not None and name not in self.names:
            defined = ", ".join(self.names) or "nothing"
            self.fail(f"unknown block {name!r}; defined here: {defined}.{nearest(name, self.names)}", start)
        return Block(name=name)

    def bracket_name(self) -> str:
        opened = self.at
        self.at += 1
        name = self.take(_NAME)
        if not name or self.text[self.at : self.at + 1] != "]":
            if self.at == len(self.text):
                self.fail("'[' is opened here and never closed", opened)
            self.fail("a name in brackets is a letter, then letters, digits, '_' or '-', and then ']'" + self.found())
        if len(name) > MAX_NAME:
            self.fail(f"a name has at most {MAX_NAME} characters", opened)
        self.at += 1
        return name

    def parallel(self) -> Parallel:
        opened = self.at
        members = []
        while not members or self.peek() == "|":
            self.at += 1
            members.append(self.member())
        if not self.peek():
            self.fail("'<' is opened here and never closed", opened)
        if self.peek() != ">":
            self.fail("after a member of <...|...> comes '|' or '>'; counts and labels stay outside" + self.found())
        if len(members) < 2:
            self.fail("<...> needs two members or more, as in <M|A>", opened)
        self.at += 1
        return Parallel(members=tuple(members))

    def member(self) -> Block:
        if self.peek() and not (_LETTER.match(self.peek()) or self.peek() == "["):
            self.fail("a member of <...|...> is a letter or a [name]" + self.found())
        block = self.block()
        return replace(block, override=self.override()) if self.peek() == "{" else block

    def suffixes(self, place: Place) -> Place:
        """`place` with the label and the override that follow it, in either order."""
        seen = ""
        while (char := self.peek()) in ("@", "{"):
            if char in seen:
                self.fail(f"a second {'label' if char == '@' else 'override'}; a block has one")
            seen += char
            place = replace(place, label=self.label()) if char == "@" else replace(place, override=self.override())
        return place

    def label(self) -> str:
        self.at += 1
        label = self.take(_LABEL)
        if not label:
            self.fail("after '@' comes a label of lower-case letters and '_', such as A@shared" + self.found())
        return label

    def override(self) -> dict[str, Any]:
        start = self.at
        self.at = self.closing_brace()
        source = self.text[start : self.at]
        try:
            return compose(source, name="override")
        except YamlError as error:
            where = f"{error.path}: " if error.path else ""
            self.fail(f"override: {where}{error.reason}", min(start + error.index, self.at - 1))

    def closing_brace(self) -> int:
        """The place after the brace that closes the one here; braces in quotes do not count."""
        depth, at, before = 1, self.at + 1, "{"
        while depth:
            if at >= len(self.text):
                self.fail("'{' is opened here and never closed")
            char = self.text[at]
            quoted = _QUOTED.match(self.text, at) if before in ("{", "[", ",", ":", "?") else None
            at = quoted.end() if quoted else at + 1
            depth += (char == "{") - (char == "}")
            before = before if char.isspace() else char
        return at

    def found(self) -> str:
        char = self.text[self.at : self.at + 1]
        return f", not {describe(char)}" if char else ""

    def unexpected(self) -> NoReturn:
        char = self.peek()
        if not char:
            self.fail("the pattern ends where a block should follow")
        if _COUNT.match(char):
            self.fail("a count follows what it repeats, as in 'M3'")
        if char in "])>}" and self.opened:
            self.fail(f"{char!r} cannot close the '(' that is opened at character {self.opened[-1] + 1}")
        expected = "" if lookalike(char) else _HINTS.get(char, "; expected a letter, [name], '-', '(' or '<'")
        self.fail(f"unexpected {describe(char)}{expected}")
