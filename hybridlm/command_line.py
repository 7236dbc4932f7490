"""An option that takes one value is given once: a parser would keep the last and say nothing of the others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise


def given_twice(words: Sequence[str], once: Callable[[str], bool]) -> str | None:
    """What is wrong with the first option that would take the place of another, with both values; None if none does.

    once: whether an option may be given once alone. `--a.b`, a whole section, is no longer said behind `--a.b.c`.
    `--a.b+`, one more element of a list, may be repeated, and what follows it of `--a.b.c` is of that element.
    """
    given: dict[str, str] = {}
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if word == "--":  # behind it are no options
            return None
        if " " in option:  # a text, as argparse has it
            continue
        if option.startswith("--") and option.endswith("+"):
            given = {name: said for name, said in given.items() if not name.startswith(f"{option[:-1]}.")}
        elif option.startswith("--") and once(option):
            value = value if equals else after
            if option in given:
                return f"{option}: given twice, {given[option]!r} and {value!r}; it takes one value"
            if lost := next((name for name in given if name.startswith(f"{option}.")), None):
                return f"{option}: {value!r} would take the place of {lost} {given[lost]!r}; say it before that"
            given[option] = value
    return None


def require_once(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The parser's error, where an option of one value is given twice. Switches and lists may be repeated."""
    lists = (argparse._AppendAction, argparse._ExtendAction)
    single = [action for action in parser._actions if action.nargs != 0 and not isinstance(action, lists)]
    known = {option for action in single for option in action.option_strings}
    if wrong := given_twice(words, known.__contains__):
        parser.error(wrong)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses an option of one value given twice, for its commands too."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As ArgumentParser's."""
        words = sys.argv[1:] if args is None else list(args)
        require_once(self, words)
        return super().parse_known_args(words, namespace)
