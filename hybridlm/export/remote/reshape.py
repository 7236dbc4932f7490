"""Reshaping by names: `rearrange(x, "b t (h p) -> b t h p", p=64)`, in the notation of Rogozhnikov's einops (2022).

Names are axes, brackets join them, 1 is an axis of length 1, and ... is whatever axes there are besides.
"""

from functools import lru_cache

import torch
from torch import Tensor

REST = "..."


def rearrange(x: Tensor, pattern: str, **lengths: int) -> Tensor:
    """x with its axes cut up, in another order, joined. lengths: of axes that x's shape does not tell."""
    left, right = _read(pattern, x.ndim)
    known = dict(lengths)
    for axes, length in zip(left, x.shape, strict=True):
        told = _product([known[axis] for axis in axes if axis in known])
        known |= {axis: length // told for axis in axes if axis not in known}
    old, new = ([axis for axes in side for axis in axes] for side in (left, right))
    x = x.reshape([known[axis] for axis in old])
    kept = [axis for axis in new if axis in old]
    x = x.permute([old.index(axis) for axis in kept])
    x = x[tuple(slice(None) if axis in old else None for axis in new)].expand([known[axis] for axis in new])
    return x.reshape([_product([known[axis] for axis in axes]) for axes in right])


def repeat(x: Tensor, pattern: str, **lengths: int) -> Tensor:
    """As `rearrange`; an axis that x does not have repeats it."""
    return rearrange(x, pattern, **lengths)


def einsum(x: Tensor, y: Tensor, pattern: str) -> Tensor:
    """torch.einsum with whole words for axes: "b s r, h n r -> b s h n"."""
    return torch.einsum(_letters(pattern), x, y)


def _product(lengths: list[int]) -> int:
    """Of all of them; math.prod is nothing that torch.compile can trace."""
    product = 1
    for length in lengths:
        product *= length
    return product


@lru_cache(maxsize=1024)
def _read(pattern: str, ndim: int) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Both sides of a pattern: the axes that each axis of the tensor is made of."""
    left, right = (_axes(side) for side in pattern.split("->"))
    rest = tuple((f"{REST}{i}",) for i in range(ndim - len(left) + 1))
    return tuple(tuple(a for axes in side for a in (rest if axes == (REST,) else (axes,))) for side in (left, right))


def _axes(side: str) -> list[tuple[str, ...]]:
    """ "b (h p) 1" -> [("b",), ("h", "p"), ()]."""
    found, inside = [], None
    for word in side.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            inside = []
        elif word == ")":
            found.append(tuple(inside))
            inside = None
        elif inside is not None:
            inside.append(word)
        else:
            found.append(() if word == "1" else (word,))
    return found


@lru_cache(maxsize=1024)
def _letters(pattern: str) -> str:
    """The same with one letter for each word."""
    letters: dict[str, str] = {REST: REST, ",": ",", "->": "->"}
    for word in pattern.replace(",", " , ").split():
        letters.setdefault(word, chr(ord("a") + len(letters) - 3))
    return "".join(letters[word] for word in pattern.replace(",", " , ").split())
