"""The fields of a config class, from what a spec gives for them: known names, declared types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from hybridlm import checks
from hybridlm.errors import SpecError


def config_from(cls: type, given: Mapping[str, Any], path: str) -> Any:
    """A config of the given fields. SpecError: one is unknown, missing, or of another type."""
    try:
        return cls(**checked(cls, given, path))
    except TypeError as error:
        raise SpecError(f"{path.rstrip('.')}: {error}") from error


def checked(cls: type, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The given fields of a config class, each of the declared type."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    checks.known(given, names, path)
    return {name: _typed(path + name, value, hints[name]) for name, value in given.items()}


def _typed(path: str, value: Any, hint: Any) -> Any:
    """value, if it is of the annotated type: int, float, bool, str, a list of them, or None where allowed."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        return checks.flag(path, value)
    if kind is int:
        return checks.integer(path, value)
    if kind is float:
        return checks.real(path, value)
    if kind is str and not isinstance(value, str):
        raise SpecError(f"{path}: {value!r} is not text")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{path}: {value!r} is not a list")
        return tuple(_typed(f"{path}.{i}", item, typing.get_args(kind)[0]) for i, item in enumerate(value))
    return value
