"""The shape checks: jaxtyping and beartype at the doors of functions that say a shape, and nowhere else.

Wrong shapes are our bugs, and the tests should see them at the door. Wrong values are a user's mistakes, and those must
reach the code that answers with a SpecError: so an `int` annotation is left alone.

A check looks at dtypes, shapes and (`"{n} d"`) numbers, and says the same of the same ones each time. It costs more
than the op behind it, so it is made once for each combination; a function that says no shape gets no door at all.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray
from torch.compiler import is_compiling

jaxtyped = jaxtyping.jaxtyped
_silent: set[types.CodeType] = set()
"""Of functions that say no shape."""


@contextmanager
def checked(rooms: list[str]) -> Iterator[None]:
    """What is imported from these packages within the block checks its shapes.

    jaxtyping's import hook puts `@jaxtyping.jaxtyped(...)` at each function and class: `door` goes by that name here.
    """
    renamed = patch.object(jaxtyping, "jaxtyped", lambda typechecker: door)
    with renamed, jaxtyping.install_import_hook(rooms, "shape_checks.typechecked"):
        yield


def door(entered: Any) -> Any:
    """A function, or a dataclass, that checks shapes if it says any."""
    if isinstance(entered, type):
        if "__dataclass_fields__" in vars(entered) and "__init__" in vars(entered):
            entered.__init__ = door(entered.__init__)
        return entered
    if is_compiling() or entered.__code__ in _silent:  # a function inside another is made at each call
        return entered
    if any(map(_says_shape, _hints(entered))):
        return once(entered)
    _silent.add(entered.__code__)
    return entered


def _hints(function: types.FunctionType) -> Iterable[Any]:
    """Its annotations, those in quotes too where what they name is there already."""
    try:
        return get_type_hints(function).values()
    except NameError:
        return function.__annotations__.values()


def once(function: types.FunctionType) -> Callable:
    """The function, checked once for each form of its arguments and result; bare where torch.compile traces it."""
    runs: list[Callable] = []  # what stands behind the checks: the function, or a result that is there already
    checks = jaxtyped(typechecker=typechecked)(_behind(function, runs))
    seen: set[Hashable] = set()

    def check(arguments: Hashable, run: Callable, args: tuple, kwargs: dict) -> Any:
        runs.append(run)
        try:
            out = checks(*args, **kwargs)
        finally:
            runs.pop()
        seen.update((arguments, (arguments, form(out))))
        return out

    @functools.wraps(function)
    def entered(*args, **kwargs):
        if is_compiling():
            return function(*args, **kwargs)
        arguments = (form(args), form(kwargs))
        if arguments not in seen:
            return check(arguments, function, args, kwargs)
        out = function(*args, **kwargs)
        return out if (arguments, form(out)) in seen else check(arguments, lambda *_, **__: out, args, kwargs)

    return entered


def _behind(function: types.FunctionType, runs: list[Callable]) -> types.FunctionType:
    """A function with the signature and the globals of that one, which runs the last of `runs`."""

    def call(*args, **kwargs):
        return runs[-1](*args, **kwargs)

    copy = types.FunctionType(call.__code__, function.__globals__, function.__name__, None, call.__closure__)
    return functools.update_wrapper(copy, function)


def form(value: Any) -> Hashable:
    """All of a value that a check of shapes looks at."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(form, value))
    if isinstance(value, dict):
        return (type(value), *((key, form(part)) for key, part in value.items()))
    return (type(value), value) if isinstance(value, (int, str)) else type(value)


def typechecked(function: Callable) -> Callable:
    """The function with those of its parameters checked that say a shape."""
    shapes = {name: hint for name, hint in function.__annotations__.items() if _says_shape(hint)}
    if not shapes:
        return function
    return beartype(_annotated(function, shapes))


def _says_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_says_shape(part) for part in get_args(hint))


def _annotated(function: types.FunctionType, annotations: dict[str, Any]) -> types.FunctionType:
    """A copy of the function with other annotations."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__annotations__ = annotations
    return copy
