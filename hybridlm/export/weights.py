"""How the tensors of two models correspond: each of theirs is made of ours, and ours are cut out of theirs again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridlm.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One tensor of theirs: `scale` times ours, joined along `dim`; or, without any of ours, `value` in every entry.

    theirs: its name. ours: names in our state_dict. shape, value: of a constant alone.
    """

    theirs: str
    ours: tuple[str, ...] = ()
    dim: int = 0
    scale: float = 1.0
    shape: Shape = ()
    value: float = 0.0

    def join(self, read: Callable[[str], Tensor], dtype: torch.dtype) -> Tensor:
        """Their tensor. read: our tensor by its name. dtype: of a constant."""
        if not self.ours:
            return torch.full(self.shape, self.value, dtype=dtype)
        parts = [read(name) for name in self.ours]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)
        return joined if self.scale == 1.0 else joined * self.scale

    def joined_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of their tensor."""
        if not self.ours:
            return self.shape
        shape = list(shapes[self.ours[0]])
        if len(self.ours) > 1:
            shape[self.dim] = sum(shapes[name][self.dim] for name in self.ours)
        return tuple(shape)

    def cut(self, theirs: Tensor, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """{our name: tensor}, the other way. CheckpointError: their tensor has another shape."""
        wanted = self.joined_shape(shapes)
        if tuple(theirs.shape) != wanted:
            raise CheckpointError(f"{self.theirs}: shape {tuple(theirs.shape)}, and the config asks for {wanted}")
        parts = [theirs]
        if len(self.ours) > 1:
            parts = theirs.split([shapes[name][self.dim] for name in self.ours], dim=self.dim)
        scaled = parts if self.scale == 1.0 else [part / self.scale for part in parts]
        return dict(zip(self.ours, scaled, strict=True))


def renamed(theirs: str, ours: str, names: Iterable[str]) -> list[Weight]:
    """For each of `names`, such as "q_proj.weight", their prefix + name from our prefix + name."""
    return [Weight(theirs + name, (ours + name,)) for name in names]


def scaled(weight: Weight, scale: float) -> Weight:
    """The same, theirs `scale` times ours."""
    return replace(weight, scale=scale)


def check_complete(weights: Sequence[Weight], ours: Iterable[str]) -> None:
    """AssertionError unless every tensor of ours is in theirs, and each of theirs is named once."""
    missing = set(ours) - {name for weight in weights for name in weight.ours}
    assert not missing, f"not exported: {sorted(missing)}"
    assert len({weight.theirs for weight in weights}) == len(weights), "a tensor of theirs is named twice"
