"""A function as a command: options from its signature, help from its docstring, errors in one sentence."""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from hybridlm.cli.complain import UsageError
from hybridlm.command_line import require_once
from hybridlm.compose.docstrings import field_docs
from hybridlm.errors import did_you_mean


class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of a docstring as they are."""


class Parser(ArgumentParser):
    """An ArgumentParser that raises UsageError, in our words, where others print a screen of usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(self._plain(message)) from ex

    def _plain(self, message: str) -> str:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            options = [text for action in self._actions for text in action.option_strings]
            return f"unknown argument {unknown[1]!r}.{did_you_mean(unknown[1].partition('=')[0], options)}"
        if missing := re.match(r"the following arguments are required: (.*)", message):
            return f"missing: {missing[1]}; see {self.prog} --help"
        if wrong := re.match(r'Parser key "(\w+)":', message):
            given = re.search(r"(?:Given value|Got value): (.*)", message)
            return (
                f"--{wrong[1].replace('_', '-')}: {given[1] if given else 'this'!r} is not {self._expected(wrong[1])}"
            )
        return message.removeprefix("argument ")

    def _expected(self, key: str) -> str:
        """What a parameter takes, for the end of a sentence."""
        hint = next(action.metavar for action in self._actions if action.dest == key)
        words = {"INT": "an integer", "FLOAT": "a number"}
        return words.get(str(hint), f"one of {str(hint).strip('{}').replace(',', ', ')}")


def call(function: Callable, argv: Sequence[str], *, name: str, example: str) -> Any:
    """Read argv by the function's signature and call it. UsageError: argv does not fit."""
    parser = Parser(
        prog=f"hybridlm {name}",
        description=_description(function),
        epilog=f"example: {example}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    docs, hints = field_docs(inspect.getdoc(function) or ""), typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        _add(parser, parameter, hints[parameter.name], docs.get(parameter.name, ""))
    words = [_hyphens(word) for word in argv]
    require_once(parser, words)
    values = parser.parse_args(words).as_dict()
    first = [values.pop(parameter.name) for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    return function(*first, **values)


def _add(parser: Parser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    """What has no default, or stands before `/`, is given by its place; the rest are options or switches."""
    if parameter.default is parameter.empty:
        parser.add_argument(parameter.name, type=hint, help=text)
        return
    if parameter.kind is parameter.POSITIONAL_ONLY:
        parser.add_argument(parameter.name, type=hint, nargs="?", default=parameter.default, help=text)
        return
    option, default = "--" + parameter.name.replace("_", "-"), parameter.default
    if hint is bool and default is False:
        parser.add_argument(option, action="store_true", help=text)
    elif element := _element(hint):
        parser.add_argument(option, type=element, nargs="+", action="extend", default=default, help=text)
    else:
        parser.add_argument(option, type=hint, default=default, metavar=_metavar(hint), help=text)


def _element(hint: Any) -> Any:
    """The type of the elements of list[...] or list[...] | None; None for other types."""
    lists = [option for option in (hint, *typing.get_args(hint)) if typing.get_origin(option) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _metavar(hint: Any) -> str:
    """INT, FLOAT, TEXT, or the values of a Literal; None beside them is not said."""
    options = (hint, *typing.get_args(hint))
    if words := [word for one in options if typing.get_origin(one) is typing.Literal for word in typing.get_args(one)]:
        return "{" + ",".join(words) + "}"
    kinds = [option for option in options if option in (int, float)]
    return kinds[0].__name__.upper() if kinds else "TEXT"


def _description(function: Callable) -> str:
    """Its docstring as far as the arguments."""
    return re.split(r"\n\s*(?:Args|Raises|Returns):", inspect.getdoc(function) or "")[0].strip()


def _hyphens(word: str) -> str:
    """--d_model=3 -> --d-model=3; nothing else is changed."""
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if option.startswith("--") else word
