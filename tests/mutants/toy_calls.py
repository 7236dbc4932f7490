"""Bugs seeded in the toy: what goes wrong between calls, at pads, between documents, and from row to row."""

import torch
import torch.nn.functional as F
from seeds import seeded, with_conv
from toy import Conv, K, Toy


# ------------------------------------------------------------------------------------------------ state between calls
@seeded("C2")
class ConvStateDroppedOnAChunk(Toy):
    def past(self, tensor, x):
        return torch.zeros_like(tensor) if x.shape[1] > 1 and tensor.ndim == 3 else tensor


@seeded("C2")
class SSMStateDroppedOnAChunk(Toy):
    def past(self, tensor, x):
        return torch.zeros_like(tensor) if x.shape[1] > 1 and tensor.ndim == 4 else tensor


@seeded("C1")
class ConvStateDroppedInAStep(Toy):
    def past(self, tensor, x):
        return torch.zeros_like(tensor) if x.shape[1] == 1 and tensor.ndim == 3 else tensor


@seeded("C1")
class SSMStateDroppedInAStep(Toy):
    def past(self, tensor, x):
        return torch.zeros_like(tensor) if x.shape[1] == 1 and tensor.ndim == 4 else tensor


@seeded("C1")
class StateNeverUsed(Toy):
    def past(self, tensor, x):
        return torch.zeros_like(tensor)


@with_conv("C2")
class ShortChunkForgetsTheConvState(Conv):
    """A call of fewer than K - 1 tokens keeps its own inputs, and zeros for those before."""

    def keep(self, full, x, ctx):
        kept = super().keep(full, x, ctx)
        return F.pad(kept[:, -x.shape[1] :], (0, 0, K - 1 - x.shape[1], 0)) if 1 < x.shape[1] < K - 1 else kept


@seeded("C2")
class PartialChunkNotInState(Toy):
    """Only whole chunks of 16 tokens reach the state."""

    def final(self, x, dt, B, H, rates, reach, ctx):
        whole = x.shape[1] // 16 * 16 or x.shape[1]
        dt = torch.cat([dt[:, :whole], torch.zeros_like(dt[:, whole:])], dim=1)
        return super().final(x, dt, B, H, rates, reach, ctx)


@seeded("C1")
class StaleStateInAStep(Toy):
    """The step's output is right, but the state that it hands on is the one that it was given."""

    def step(self, x, dt, B, C, H, ctx):
        return super().step(x, dt, B, C, H, ctx)[0], H


@seeded("C1")
class GroupMapWrongInAStep(Toy):
    def split(self, xBC):
        x, B, C = super().split(xBC)
        return (x, B, C.roll(1, 2)) if x.shape[1] == 1 else (x, B, C)


@seeded("C1")
class SkipMissingInAStep(Toy):
    def step(self, x, dt, B, C, H, ctx):
        y, after = super().step(x, dt, B, C, H, ctx)
        return y - self.D.to(x.dtype)[:, None] * x, after


@seeded("C1")
class StepSizeClampedInAStep(Toy):
    def step_size(self, dt, x):
        dt = super().step_size(dt, x)
        return dt.clamp(max=0.05) if x.shape[1] == 1 else dt


@seeded("C1")
class FreshCallReturnsAState(Toy):
    def forward(self, x, state=None, ctx=None):
        return super().forward(x, state or self.init_state(len(x), 1, dtype=x.dtype), ctx)


# ------------------------------------------------------------------------------------------------------------- padding
@seeded("C5")
class MaskIgnored(Toy):
    def pass_over(self, dt, ctx):
        return dt


@seeded("C5")
class MaskSkippedAtBatchOne(Toy):
    def pass_over(self, dt, ctx):
        return dt if len(dt) == 1 else super().pass_over(dt, ctx)


@seeded("C5")
class PadsDecayTheState(Toy):
    """The step is 0 at pads only where the input enters."""

    def final(self, x, dt, B, H, rates, reach, ctx):
        if ctx.valid is not None:
            H = H * 0.9 ** (~ctx.valid).sum(1)[:, None, None, None]
        return super().final(x, dt, B, H, rates, reach, ctx)


@with_conv("C5")
class ConvStateFromPads(Conv):
    def lengths(self, x, ctx):
        return torch.full((len(x),), x.shape[1])


@with_conv("C5")
class EmptyRowForgetsItsConvState(Conv):
    """A row without a valid token loses what it had."""

    def keep(self, full, x, ctx):
        kept = super().keep(full, x, ctx)
        return kept if ctx.lengths is None else kept * (ctx.lengths > 0)[:, None, None]


# ------------------------------------------------------------------------------------------------------------- packing
@with_conv("C6")
class DocumentsIgnoredInTheConv(Conv):
    def within(self, taps, ctx):
        return taps


@with_conv("C6")
class ConvStateAcrossDocuments(Conv):
    def documents(self, ctx):
        return ctx.document[:, -1:].expand(-1, K - 1 + ctx.document.shape[1])

    def within(self, taps, ctx):
        mine = (
            Conv.documents(self, ctx).unfold(1, K, 1) == ctx.document[..., None] if ctx.document is not None else None
        )
        return taps if mine is None else torch.where(mine[:, :, None], taps, 0)


@seeded("C6")
class DocumentsIgnoredInTheScan(Toy):
    def decay(self, rates, document):
        return super().decay(rates, torch.zeros_like(document))


@seeded("C6")
class FinalStateOfAllDocuments(Toy):
    def final(self, x, dt, B, H, rates, reach, ctx):
        everything = self.decay(rates, torch.zeros(dt.shape[:2], dtype=torch.int64))[:, -1]
        return super().final(x, dt, B, H, rates, everything, ctx)


@seeded("C6")
class StateNotResetInAStep(Toy):
    """A new document that begins with a single token still sees the old state."""

    def step(self, x, dt, B, C, H, ctx):
        return super().step(x, dt, B, C, H, _NoDocuments())


class _NoDocuments:
    def carried(self, state):
        return state


@seeded("C6")
class DocumentsLeakAThousandth(Toy):
    def decay(self, rates, document):
        return super().decay(rates, document) + 1e-3 * super().decay(rates, torch.zeros_like(document))


# --------------------------------------------------------------------------------------------- causality, batch, purity
@seeded("C3")
class AcausalByAThousandth(Toy):
    def scan(self, x, dt, B, C, H, ctx):
        y, H = super().scan(x, dt, B, C, H, ctx)
        return y + 1e-3 * F.pad(y[:, 1:], (0, 0, 0, 0, 0, 1)), H


@seeded("C4")
class BatchCrosstalk(Toy):
    def project(self, y):
        return super().project(y + 1e-3 * y.mean(0, keepdim=True))


@seeded("C4")
class NormalisedOverTheBatch(Toy):
    def project(self, y):
        return super().project(y / y.square().mean().add(1e-6).sqrt())


@seeded("C11")
class RemembersTheLastCall(Toy):
    """A convolution state kept in the module, and used where none is given."""

    def past(self, tensor, x):
        kept = self.__dict__.get("kept")
        if tensor.ndim == 4 or tensor.any():
            return tensor
        self.__dict__["kept"] = self.in_proj(x)[:, -K + 1 :, : self.widths[0]].detach()
        return tensor if kept is None or kept.shape != tensor.shape else kept.to(tensor.dtype)


@seeded("C11")
class StatisticsDrift(Toy):
    """A running mean of the outputs, updated at every call."""

    def __init__(self, config, d_model, *, eps=1e-5):
        super().__init__(config, d_model)
        self.register_buffer("mean", torch.zeros(d_model))

    def project(self, y):
        y = super().project(y)
        self.mean.mul_(0.9).add_(y.detach().mean((0, 1)), alpha=0.1)
        return y - self.mean


@seeded("C13")
class NoisyInTheLastBits(Toy):
    def project(self, y):
        return super().project(y) * (1 + 1e-7 * torch.randn(()).item())
