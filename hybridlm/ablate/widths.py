"""The widths of a model's MLPs, all of them changed in proportion by one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from hybridlm.compose.pattern import MLP_ALONE, Block, Parallel, Pattern, Place, Repeat, parse
from hybridlm.compose.plan import NONE, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError
from hybridlm.registry import mlps


class Widths:
    """A spec with MLPs of any width.

    base: the hidden units of the first MLP as the spec has them, or 0 where there is none.
    """

    def __init__(self, spec: ModelSpec):
        stack = plan(spec)
        self.resolved = stack.spec
        self.base = next((_width(layer.mlp.to_dict()) for layer in stack.layers if layer.mlp is not None), 0)

    def spec(self, width: int) -> ModelSpec:
        """The spec whose first MLP has so many hidden units, and whose others have as many more or fewer as before."""
        factor = width / self.base
        given = self.resolved.to_dict()
        for block in given["blocks"].values():
            block["mlp"] = self._scaled(block["mlp"], factor)
        given["mlp"] = self._scaled(given["mlp"], factor)
        given["pattern"] = str(Pattern(_mapped(self._pattern.items, lambda place: self._place(place, factor))))
        return ModelSpec.from_dict(given)

    @cached_property
    def _pattern(self) -> Pattern:
        return parse(self.resolved.pattern)

    def _place(self, place: Place, factor: float) -> Place:
        """A place with the widths that it says itself, scaled."""
        override = dict(place.override)
        if "mlp" in override:
            override["mlp"] = self._scaled(override["mlp"], factor)
        if isinstance(place, Block) and place.name == MLP_ALONE and "width" in override:
            override["width"] = _times(override["width"], factor)
        return replace(place, override=override)

    def _scaled(self, given: Any, factor: float) -> Any:
        """An MLP as a spec says it, with its width scaled; none stays none."""
        full = self._full(given)
        return full if full == NONE else {**full, "width": _times(_width(full), factor)}

    def _full(self, given: Any) -> Any:
        """What a spec says of an MLP, with every field."""
        said = {"type": given} if isinstance(given, str) else dict(given or {"type": NONE})
        if said["type"] == NONE:
            return NONE
        config = mlps.get(said["type"]).Config
        fields = {name: value for name, value in said.items() if name != "type"}
        return {"type": said["type"], **asdict(config(**fields).resolve(self.resolved.d_model))}


def _mapped(items: tuple, change: Any) -> tuple:
    """Items of a pattern with every place changed, and those that stand side by side in one."""
    result = []
    for item in items:
        if isinstance(item, Repeat):
            result.append(replace(item, items=_mapped(item.items, change)))
        elif isinstance(item, Parallel):
            result.append(replace(change(item), members=_mapped(item.members, change)))
        else:
            result.append(change(item))
    return tuple(result)


def _width(mlp: Mapping[str, Any]) -> int:
    if "width" not in mlp:
        raise SpecError(f"match: the MLP {mlp['type']} has no width that could change; match by: d_model")
    return mlp["width"]


def _times(width: int, factor: float) -> int:
    return max(1, round(width * factor))
