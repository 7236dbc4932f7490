"""Seeded bugs of the toy mixer: one override each, and the law that must catch it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from toy import GROUPS, HEADS, Conv, K, N, Toy, ToyState

from hybridlm.layers.cost import Cost, Flops, StateBytes
from hybridlm.layers.mixer import state_dtype

TOY_MUTANTS: dict[str, tuple[str, type[Toy]]] = {}


def seeded(law):
    """Enter a mutant of the toy under the law that must catch it."""

    def enter(mutant):
        TOY_MUTANTS[mutant.__name__] = (law, mutant)
        return mutant

    return enter


def with_conv(law):
    """Enter a toy whose convolution is this one."""

    def enter(conv):
        TOY_MUTANTS[conv.__name__] = (law, type(conv.__name__, (Toy,), {"conv_class": conv}))
        return conv

    return enter


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


# ---------------------------------------------------------------------------------------------- what a state is made of
@dataclass
class AliasedState(ToyState):
    def map(self, change):
        return type(self)(conv=self.conv, ssm=change(self.ssm))


@seeded("C10")
class ForkSharesTheConvState(Toy):
    State = AliasedState


@dataclass
class UnselectedState(ToyState):
    def map(self, change):
        changed = super().map(change)
        return (
            type(self)(changed.conv, self.ssm[: len(changed.conv)].clone())
            if len(self.ssm) >= len(changed.ssm)
            else changed
        )


@seeded("C7")
class SelectForgetsTheSSMState(Toy):
    State = UnselectedState


@dataclass
class ForgettingState(ToyState):
    def check_rollback(self, count):
        """Claims that moving the clock back is enough."""


@seeded("C9")
class RollbackThatIsNone(Toy):
    State = ForgettingState
    rolls_back = True


@dataclass
class ReusableState(ToyState):
    def advance(self, **tensors):
        after = super().advance(**tensors)
        self.spent = False
        return after


@seeded("C10")
class StateNotSpent(Toy):
    State = ReusableState


@seeded("C10")
class InputOverwritten(Toy):
    def forward(self, x, state=None, ctx=None):
        if not torch.is_grad_enabled() and ctx is not None and ctx.valid is None:
            x.mul_(1.0001)
        return super().forward(x, state, ctx)


@dataclass
class LossyState(ToyState):
    def tensors(self):
        return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in super().tensors().items()}


@seeded("C18")
class StateSavedInBF16(Toy):
    State = LossyState


@seeded("C12")
class SSMStateInBF16(Toy):
    def init_state(self, batch, max_length, *, device=None, dtype=None):
        state = super().init_state(batch, max_length, device=device, dtype=dtype)
        return ToyState(state.conv, state.ssm.bfloat16())

    def past(self, tensor, x):
        return tensor.to(state_dtype(x.dtype)) if tensor.ndim == 4 else tensor


@seeded("C12")
class SSMStateRoundedToBF16(Toy):
    """The state is declared float32 and rounded on the way."""

    def past(self, tensor, x):
        return tensor.bfloat16().to(tensor.dtype) if tensor.ndim == 4 else tensor


@dataclass
class DriftingState(ToyState):
    def advance(self, **tensors):
        after = super().advance(**tensors)
        return type(self)(after.conv, after.ssm.to(torch.float64))


@seeded("C12")
class DtypeOfTheStateChanges(Toy):
    State = DriftingState


@seeded("C8")
class FreshMemoryIsRead(Toy):
    def project(self, y):
        room = torch.empty_like(y)
        room[..., 1:] = y[..., 1:]
        return super().project(torch.where(room.isnan(), room, y))


# ------------------------------------------------------------------------------------------------------------ gradients
@seeded("C14")
class DetachedSSMState(Toy):
    def past(self, tensor, x):
        return tensor.detach() if tensor.ndim == 4 else tensor


@seeded("C14")
class DetachedConvState(Toy):
    def past(self, tensor, x):
        return tensor.detach() if tensor.ndim == 3 else tensor


@with_conv("C14")
class ConvStateHandedOnWithoutGradient(Conv):
    def keep(self, full, x, ctx):
        return super().keep(full.detach(), x, ctx)


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return 0.99 * dy


@seeded("C14")
class GradientOfTheStepSizeOff(Toy):
    def step_size(self, dt, x):
        return HalfGradient.apply(super().step_size(dt, x))


@seeded("C14")
class GradientOffFromTheSecondGroupOn(Toy):
    def split(self, xBC):
        x, B, C = super().split(xBC)
        half = HEADS // GROUPS
        return x, torch.cat([B[:, :, :half], HalfGradient.apply(B[:, :, half:])], dim=2), C


@seeded("C14")
class GradientAssumesContiguous(Toy):
    def project(self, y):
        return Contiguous.apply(super().project(y))


class Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        if dy.is_contiguous() or 0 in dy.stride():
            return dy
        return dy.as_strided(dy.shape, torch.empty(dy.shape).stride(), dy.storage_offset()).clone()


@seeded("C16")
class ExponentialBeforeTheMask(Toy):
    def decay(self, rates, document):
        total = rates.cumsum(1)
        seen = (document[:, :, None] == document[:, None]) & torch.ones(rates.shape[1], rates.shape[1]).tril().bool()
        return (total[:, :, None] - total[:, None]).exp() * seen[..., None]


@seeded("C16")
class LogarithmOfTheStep(Toy):
    def step_size(self, dt, x):
        return super().step_size(dt, x).log().exp()


# ------------------------------------------------------------------------------------------- parameters, weights, books
@seeded("C17")
class StepBiasStartsAtZero(Toy):
    def reset_parameters(self, streams=None):
        super().reset_parameters(streams)
        nn.init.zeros_(self.dt_bias)


@seeded("C17")
class ParameterLeftUnset(Toy):
    def __init__(self, config, d_model, *, eps=1e-5):
        super().__init__(config, d_model)
        nn.init.ones_(self.D)

    def reset_parameters(self, streams=None):
        kept = self.D.detach().clone()
        super().reset_parameters(streams)
        self.D.data.copy_(kept)


@seeded("C17")
class WeightsFromTheGlobalSeed(Toy):
    def reset_parameters(self, streams=None):
        super().reset_parameters()


@seeded("C18")
class BufferNotSaved(Toy):
    def __init__(self, config, d_model, *, eps=1e-5):
        super().__init__(config, d_model)
        self.register_buffer("scale", torch.ones(()), persistent=False)


@seeded("C19")
class DecayedA(Toy):
    param_groups = {name: {"weight_decay": 0.0} for name in ("D", "dt_bias")}


@seeded("C19")
class UndecayedGhost(Toy):
    param_groups = Toy.param_groups | {"A_logs": {"weight_decay": 0.0}}


@seeded("C22")
class RatesCached(Toy):
    def rate(self, dtype):
        self.__dict__.setdefault("rates", super().rate(torch.float64).detach())
        return self.__dict__["rates"].to(dtype)


@seeded("C23")
class WeightReadPastTheModule(Toy):
    def project(self, y):
        return F.linear(y, self.out_proj.weight)


@seeded("C23")
class HookSilentInDecoding(Toy):
    def project(self, y):
        return super().project(y) if y.shape[1] > 1 else F.linear(y, self.out_proj.weight)


@seeded("C24")
class ParametersMiscounted(Toy):
    @classmethod
    def cost(cls, config, d_model):
        return Toy.cost(config, d_model) + Cost(-HEADS)


@seeded("C24")
class StateMiscounted(Toy):
    @classmethod
    def cost(cls, config, d_model):
        return Toy.cost(config, d_model) + Cost(
            0, state=lambda length, size: StateBytes(ssm=-d_model * N * max(0, 8 - size))
        )


@seeded("C24")
class ScanFlopsMiscounted(Toy):
    @classmethod
    def cost(cls, config, d_model):
        return Toy.cost(config, d_model) + Cost(
            0, lambda tokens, past: Flops(matmul=0.0 if tokens == 1 else 4e4 * tokens)
        )
