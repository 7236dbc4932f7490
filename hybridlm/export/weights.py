"""How the tensors of two models correspond: each of theirs is made of ours, and ours are cut out of theirs again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridlm.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One tensor of theirs: `scale` times ours, joined along `dim`; or, without any of ours, `value` in every entry.

    theirs: its name. ours: names in our state_dict. shape, value: of a constant alone.
    index: theirs is one entry, along the first dimension, of the one of ours; all entries make it up.
    rows: (how many, scale) from the top down, in place of one scale.
    """

    theirs: str
    ours: tuple[str, ...] = ()
    dim: int = 0
    scale: float = 1.0
    shape: Shape = ()
    value: float = 0.0
    index: int | None = None
    rows: tuple[tuple[int, float], ...] = ()

    def join(self, read: Callable[[str], Tensor], dtype: torch.dtype) -> Tensor:
        """Their tensor. read: our tensor by its name. dtype: of a constant."""
        if not self.ours:
            return torch.full(self.shape, self.value, dtype=dtype)
        parts = [read(name) for name in self.ours]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)
        joined = joined if self.index is None else joined[self.index]
        return joined if self.unscaled else joined * self._factor(joined)

    @property
    def scales(self) -> tuple[float, ...]:
        """Every scale in use."""
        return tuple(scale for _, scale in self.rows) or (self.scale,)

    @property
    def unscaled(self) -> bool:
        """Whether all of them are 1."""
        return all(scale == 1.0 for scale in self.scales)

    def _factor(self, tensor: Tensor) -> Tensor | float:
        """What broadcasts over a tensor."""
        if not self.rows:
            return self.scale
        factors = torch.cat([torch.full((count,), scale, dtype=torch.float64) for count, scale in self.rows])
        return factors.to(torch.promote_types(tensor.dtype, torch.float32))[:, None]

    def joined_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of their tensor."""
        if not self.ours:
            return self.shape
        if self.index is not None:
            return shapes[self.ours[0]][1:]
        shape = list(shapes[self.ours[0]])
        if len(self.ours) > 1:
            shape[self.dim] = sum(shapes[name][self.dim] for name in self.ours)
        return tuple(shape)

    def cut(self, theirs: Tensor, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """{our name: tensor, or its entry}, the other way. CheckpointError: their tensor has another shape."""
        wanted = self.joined_shape(shapes)
        if tuple(theirs.shape) != wanted:
            raise CheckpointError(f"{self.theirs}: shape {tuple(theirs.shape)}, and the config asks for {wanted}")
        parts = [theirs] if self.ours else []
        if len(self.ours) > 1:
            parts = theirs.split([shapes[name][self.dim] for name in self.ours], dim=self.dim)
        if not self.unscaled:
            parts = [part.to(torch.promote_types(part.dtype, torch.float32)) / self._factor(part) for part in parts]
        return dict(zip(self.ours, parts, strict=True))


def require_finite(name: str, tensor: Tensor, error: type[ValueError]) -> Tensor:
    """The tensor; `error` with its name, where a number in it is none."""
    if not bool(tensor.isfinite().all()):
        raise error(f"{name}: NaN or infinite; no model could be proved equal to that")
    return tensor


def renamed(theirs: str, ours: str, names: Iterable[str]) -> list[Weight]:
    """For each of `names`, such as "q_proj.weight", their prefix + name from our prefix + name."""
    return [Weight(theirs + name, (ours + name,)) for name in names]


def scaled(weight: Weight, scale: float) -> Weight:
    """The same, theirs `scale` times ours."""
    return replace(weight, scale=scale)


def entries(theirs: str, ours: str, count: int) -> list[Weight]:
    """One of theirs for each entry of ours, such as the experts of a mixture. theirs: with {} for the number."""
    return [Weight(theirs.format(i), (ours,), index=i) for i in range(count)]
