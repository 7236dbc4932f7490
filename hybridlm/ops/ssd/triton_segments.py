"""Long rows that are too few to fill a GPU, cut into segments that are rows themselves.

A first walk over each segment, which stores nothing, says what it adds to the state that it finds and what it leaves of
it; passed on from segment to segment that is the state before each. Backward the same from the right, of gradients.
"""

import torch
from torch import Tensor

from hybridlm.ops.ssd.triton_states import Sizes, Tuning, end


def fold(v: Tensor | None, segments: int) -> Tensor | None:
    """(b, t, ...) -> (b * segments, t / segments, ...)."""
    return v if v is None or segments == 1 else v.unflatten(1, (segments, -1)).flatten(0, 1)


def unfold(v: Tensor, segments: int) -> Tensor:
    """(b * segments, t / segments, ...) -> (b, t, ...)."""
    return v if segments == 1 else v.unflatten(0, (-1, segments)).flatten(1, 2)


def fold_documents(document: Tensor | None, segments: int) -> Tensor | None:
    """As `fold`, 0 being the document that the segment before ended in."""
    if document is None or segments == 1:
        return document
    parts = document.unflatten(1, (segments, -1))
    before = torch.cat([torch.zeros_like(parts[:, :1, -1]), parts[:, :-1, -1]], dim=1)
    return (parts - before[..., None]).flatten(0, 1)


def entering(x, B, steps: Tensor, state: Tensor | None, s: Sizes, tuning: Tuning) -> Tensor | None:
    """The state before each segment (b * segments, h, p, n), float32. state: before the first, of each row."""
    if tuning.segments == 1:
        return state
    return _pass_on(end(x, B, steps, False, s, tuning), steps, state, s, tuning.segments, range(tuning.segments))


def leaving(dy, C, steps: Tensor, dlast: Tensor | None, s: Sizes, tuning: Tuning) -> Tensor | None:
    """The gradient of the state after each segment. dlast: of that after the last, of each row."""
    if tuning.segments == 1:
        return dlast
    order = range(tuning.segments - 1, -1, -1)
    return _pass_on(end(dy, C, steps, True, s, tuning), steps, dlast, s, tuning.segments, order)


def _pass_on(added: Tensor, steps: Tensor, given: Tensor | None, s: Sizes, segments: int, order: range) -> Tensor:
    """given, then added_k + through_k given, and so on, in the order of the segments k; placed as these are."""
    since = steps[3].unflatten(2, (s.chunks, s.size))
    through = since[..., -1].prod(2).unflatten(0, (-1, segments))[..., None, None]
    added = added.unflatten(0, (-1, segments))
    held = torch.zeros_like(added[:, 0]) if given is None else given
    found = {}
    for k in order:
        found[k] = held
        held = torch.addcmul(added[:, k], through[:, k], held)
    return torch.stack([found[k] for k in range(segments)], dim=1).flatten(0, 1)
