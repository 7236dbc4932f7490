"""The fields of a task: what may stand in each, and every problem of a task told at once."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hybridlm import checks
from hybridlm.errors import SpecError

LONGEST = 1 << 20  # positions of a sample
LARGEST = 1 << 20  # symbols of a vocabulary


def within(default: Any, low: float, high: float) -> Any:
    """A field of a task: a number from low to high, whole if the field is annotated so; None only as `... | None`."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def one_of(default: str, *names: str) -> Any:
    """A field of a task: one of these names."""
    return dataclasses.field(default=default, metadata={"names": names})


def yes_or_no(default: bool) -> Any:
    """A field of a task: true or false."""
    return dataclasses.field(default=default, metadata={"flag": True})


def difficulty(cls: type) -> list[dataclasses.Field]:
    """The fields of a task that a user sets; others, such as a text task's codec, have no limits."""
    return [field for field in dataclasses.fields(cls) if field.metadata]


def wrong_fields(task: Any) -> list[str]:
    """A sentence for each field of a task whose value may not stand there."""
    hints = typing.get_type_hints(type(task))
    found = []
    for field in difficulty(type(task)):
        try:
            _check(field, getattr(task, field.name), hints[field.name])
        except SpecError as error:
            found.append(str(error))
    return found


def unknown_fields(cls: type, given: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each name that is no field of a task, with the nearest one."""
    names = [field.name for field in difficulty(cls)]
    for name in given:
        try:
            checks.known({name: None}, names)
        except SpecError as error:
            yield str(error)


def _check(field: dataclasses.Field, value: Any, hint: Any) -> None:
    kinds = typing.get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return
    if "names" in field.metadata:
        checks.choice(field.name, value, field.metadata["names"])
    elif "flag" in field.metadata:
        checks.flag(field.name, value)
    elif int in kinds:
        checks.whole(field.name, value, field.metadata["low"], field.metadata["high"])
    elif float in kinds:
        checks.real(field.name, value, field.metadata["low"], field.metadata["high"])
