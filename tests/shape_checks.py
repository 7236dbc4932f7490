"""The type checker behind the shape checks: beartype, applied to jaxtyping annotations and to nothing else.

Wrong shapes are our bugs, and the tests should see them at the door. Wrong values are a user's mistakes, and those must
reach the code that answers with a SpecError: so an `int` annotation is left alone.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray
from torch.compiler import is_compiling


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


def pass_the_compiler() -> None:
    """Check nothing while torch.compile traces, as it cannot trace the checks."""
    from jaxtyping import config

    from hybridlm.state import LayerState

    LayerState.__no_type_check__ = True  # states say no shapes, and are made while tracing
    off = property(lambda self: is_compiling(), lambda self, value: None)
    config.__class__ = type("Config", (type(config),), {"jaxtyping_disable": off})
