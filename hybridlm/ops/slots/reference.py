"""Slots in plain PyTorch. Which tokens are kept is a matter of the device alone: the host does not wait for it."""

import torch
from torch import Tensor


def write_slots(
    caches: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], slots: Tensor, keep: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    first, second = (_write(*pair, slots, keep, in_place) for pair in zip(caches, new, strict=True))
    return first, second


def _write(cache: Tensor, new: Tensor, slots: Tensor, keep: Tensor | None, in_place: bool) -> Tensor:
    new = new.to(cache.dtype)
    if keep is not None and not in_place:
        return _mapped(cache, new, slots, keep)
    rows = torch.arange(cache.shape[0], device=cache.device)[:, None].expand_as(slots)
    if keep is not None:
        slots, new = _repeated(cache, new, slots, keep)
    put = cache.index_put_ if in_place else cache.index_put
    return put((rows, slots), new)


def _repeated(cache: Tensor, new: Tensor, slots: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """slots and new with every token that is not kept replaced by its row's last one that is, which is then written
    again; a row that keeps none writes what is in the slot of its first token, or in the last slot."""
    if keep.shape[1] > 1:
        steps = torch.arange(keep.shape[1], device=keep.device)
        last = torch.where(keep, steps, 0).amax(dim=1, keepdim=True)
        source = torch.where(keep, steps, last)
        slots, new, keep = slots.gather(1, source), _taken(new, source), keep.any(dim=1, keepdim=True)
    slots = slots.clamp(max=cache.shape[1] - 1)
    return slots, torch.where(_as_wide(keep, new), new, _taken(cache, slots[:, :1]))


def _mapped(cache: Tensor, new: Tensor, slots: Tensor, keep: Tensor) -> Tensor:
    """The same as a choice for every slot, through which gradients flow once."""
    size = cache.shape[1]
    steps = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    chosen = torch.full((cache.shape[0], size + 1), -1, device=keep.device)
    chosen = chosen.scatter(1, torch.where(keep, slots, size), steps)[:, :size]  # what is not kept goes behind the end
    return torch.where(_as_wide(chosen >= 0, cache), _taken(new, chosen.clamp(min=0)), cache)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """x (b, t, ...) gathered along t by index (b, s)."""
    return x.gather(1, _as_wide(index, x).expand(index.shape + x.shape[2:]))


def _as_wide(x: Tensor, like: Tensor) -> Tensor:
    """x (b, t) with as many dimensions as `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - 2))
