"""The short causal convolution in plain PyTorch: k shifted copies of the input, weighted and added.

On a CPU its forward pass is as fast as a grouped F.conv1d, which would look across the bounds of documents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.by_hand import by_formula, by_hand, by_hand_compiled
from hybridlm.ops.causal_conv.compiled import Convolution
from hybridlm.ops.spread import spread


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    document: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    k, wide = weight.shape[-1], torch.promote_types(x.dtype, torch.float32)
    if lengths is not None:
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = torch.where(valid[..., None], x, 0)
    before = x.new_zeros(x.shape[0], k - 1, x.shape[2]) if state is None else state.transpose(1, 2)
    history = torch.cat([before, x], dim=1)
    owner = None if document is None else F.pad(document, (k - 1, 0))  # whose input it is; the state's are document 0's

    if owner is None and by_hand_compiled(x) and x.shape[1] >= k:
        taps, bias = torch.stack(weight[:, 0].to(wide).unbind(-1)), bias if bias is None else bias.to(wide)
        y = Convolution.apply(x, before.to(wide), taps, bias, activation == "silu")
        history = x if lengths is None else history  # the last inputs are among these, so nothing is copied
    else:
        y = _taps(history.to(wide), weight.to(wide), owner)
        y = y if bias is None else y + spread(bias.to(wide), y)
        y = F.silu(y) if activation == "silu" else y
    return y.to(x.dtype), last_inputs(history, k - 1, lengths, owner).to(before.dtype)


def _taps(history: Tensor, weight: Tensor, owner: Tensor | None) -> Tensor:
    """history (b, k - 1 + t, c) -> (b, t, c)."""
    if owner is None and by_hand(history, weight):
        return Taps.apply(history, weight[:, 0].T.contiguous())
    taps = torch.stack(weight[:, 0].unbind(-1))  # in one piece also where torch.compile would look past a transpose
    return _sums(history, taps, owner)


def _sums(history: Tensor, weight: Tensor, owner: Tensor | None = None) -> Tensor:
    """history (b, k - 1 + t, c), weight (k, c) -> (b, t, c). owner (b, k - 1 + t): whose input it is."""
    k = len(weight)
    t = history.shape[1] - k + 1
    y = history[:, k - 1 :] * spread(weight[-1], history[:, k - 1 :])
    for j in range(k - 1):
        tap = history[:, j : j + t]
        if owner is not None:
            tap = torch.where((owner[:, j : j + t] == owner[:, k - 1 :])[..., None], tap, 0)
        y = torch.addcmul(y, tap, spread(weight[j], tap))
    return y


class Taps(torch.autograd.Function):
    """The same for one document, in the memory of y: history (b, k - 1 + t, c), weight (k, c) -> (b, t, c)."""

    @staticmethod
    def forward(ctx, history: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(history, weight)
        t = history.shape[1] - len(weight) + 1
        y = history[:, len(weight) - 1 :] * weight[-1]
        for j, tap in enumerate(weight[:-1]):
            y.addcmul_(history[:, j : j + t], tap)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        history, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(by_formula(_sums, (history, weight), (dy,)))
        t, dhistory, dweight = dy.shape[1], torch.zeros_like(history), torch.empty_like(weight)
        for j, tap in enumerate(weight):
            dhistory[:, j : j + t].addcmul_(dy, tap)
            torch.sum(dy * history[:, j : j + t], dim=(0, 1), out=dweight[j])
        return dhistory, dweight


def last_inputs(history: Tensor, count: int, lengths: Tensor | None, owner: Tensor | None) -> Tensor:
    """The `count` inputs that a row's next token would look back on, (b, c, count)."""
    b, total, c = history.shape
    if lengths is None and owner is None:
        return history[:, total - count :].transpose(1, 2)
    if lengths is None:
        place = torch.arange(total - count, total, device=history.device).expand(b, -1)
    else:
        place = lengths[:, None] + torch.arange(count, device=history.device)
    last = history.gather(1, place[..., None].expand(-1, -1, c))
    if owner is not None:
        last = torch.where((owner.gather(1, place) == owner[:, -1:])[..., None], last, 0)
    return last.transpose(1, 2)
