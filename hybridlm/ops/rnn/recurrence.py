"""A compiled recurrence over rows of unequal length, and over documents packed into rows.

The compiled loops of PyTorch, oneDNN and cuDNN take rows of one length. A row that ends early must end with the state
of its last valid token. That is y there, which the outputs hold; the cell of an LSTM, which they do not, is carried on
through the pads unchanged, by an input that only pads have: it opens the forget gate and shuts the input gate.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridlm.ops.rows import last_valid

Memory = tuple[Tensor, ...]  # (y, c) or (y,), each (b, h)
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # ih, hh, and their biases
Loop = Callable[[Tensor, Memory, Weights], tuple[Tensor, Memory]]

SHUT = 1e9
"""Far beyond what a gate's other inputs come to: its logistic function is 0 or 1 to the last bit."""


def recur(
    loop: Loop,
    x: Tensor,
    weights: Weights,
    state: Memory | None,
    count: int,
    lengths: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Memory]:
    """x (b, t, d) -> y (b, t, h), and the last state of each row: `count` tensors (b, h)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        weights = tuple(weight.to(wide) for weight in weights)
        zero = x.new_zeros(x.shape[0], weights[1].shape[1], dtype=wide)
        state = (zero,) * count if state is None else tuple(tensor.to(wide) for tensor in state)
        if document is None:
            y, state = _rows(loop, x.to(wide), weights, state, lengths)
        else:
            y, state = _documents(loop, x.to(wide), weights, state, lengths, document)
    return y.to(x.dtype), state


def _rows(loop: Loop, x: Tensor, weights: Weights, state: Memory, lengths: Tensor | None) -> tuple[Tensor, Memory]:
    """Rows that each start from their state. lengths (b): valid tokens."""
    if lengths is None:
        return loop(x, state, weights)
    pad = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    x, ih = torch.where(pad[..., None], 0, x), weights[0]
    if len(state) == 2:
        gates = [ih.new_full((len(ih) // 4, 1), shut) for shut in (-SHUT, SHUT, 0, 0)]  # i, f, g, o
        x, ih = torch.cat([x, pad[..., None].to(x.dtype)], dim=-1), torch.cat([ih, torch.cat(gates)], dim=-1)
    y, last = loop(x, state, (ih, *weights[1:]))
    return y, (last_valid(y, state[0], lengths), *last[1:])


def _documents(
    loop: Loop, x: Tensor, weights: Weights, state: Memory, lengths: Tensor | None, document: Tensor
) -> tuple[Tensor, Memory]:
    """Every document in a row of its own; those of like length, up to a power of two, at once.

    A row's first document goes on from its state, the others start from zero; its last one leaves its state behind.
    """
    b, t, _ = x.shape
    start, row, length = runs(document, lengths)
    flat, y = x.flatten(0, 1), x.new_zeros(b * t, state[0].shape[1])
    fresh, is_last = document.flatten()[start] != 0, torch.diff(row, append=row.new_tensor([b])) != 0
    final = state
    level = torch.ceil(torch.log2(length.double())).long()
    for size in level.unique().tolist():
        chosen = level == size
        first, rows, last = start[chosen], row[chosen], is_last[chosen]
        steps = torch.arange(min(2**size, t), device=x.device)
        inside = steps < length[chosen, None]
        index = torch.where(inside, first[:, None] + steps, 0)
        begun = tuple(torch.where(fresh[chosen, None], 0, tensor[rows]) for tensor in state)
        apart, ended = _rows(loop, flat[index], weights, begun, length[chosen])
        y = y.index_put((index[inside],), apart[inside])
        final = tuple(old.index_put((rows[last],), new[last]) for old, new in zip(final, ended, strict=True))
    return y.unflatten(0, (b, t)), final


def runs(document: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """document (b, t) -> of each document in order: where it starts in the flattened batch, its row, its valid tokens.

    A row without valid tokens has none.
    """
    b, t = document.shape
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    ends = torch.arange(t, (b + 1) * t, t, device=document.device)
    if lengths is not None:
        begins &= torch.arange(t, device=document.device) < lengths[:, None]
        ends = ends - t + lengths
    start = begins.flatten().nonzero().squeeze(1)
    row = start // t
    following = torch.cat([start[1:], start.new_tensor([b * t])])
    return start, row, torch.minimum(following, ends[row]) - start
