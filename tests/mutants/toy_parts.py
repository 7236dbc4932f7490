"""Bugs seeded in the toy: what its state is made of, its gradients, its parameters and its books."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from seeds import seeded, with_conv
from torch import nn
from toy import GROUPS, HEADS, Conv, N, Toy, ToyState

from hybridlm.layers.cost import Cost, Flops, StateBytes
from hybridlm.layers.mixer import state_dtype


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


# ----------------------------------------------------------------------------------------- compiled, and computed again
@seeded("C20")
class LooksAtANumber(Toy):
    """Which torch.compile cannot."""

    def project(self, y):
        return super().project(y if y.detach().abs().max() < 1e30 else 2 * y)


@seeded("C20")
class CompiledForEveryLength(Toy):
    def project(self, y):
        for _ in range(y.shape[1]):
            y = y + 0
        return super().project(y)


@seeded("C20")
class RandomNumbersOfItsOwn(Toy):
    """Which activation checkpointing does not set back."""

    def project(self, y):
        self.generator = getattr(self, "generator", None) or torch.Generator().manual_seed(0)
        noise = 1e-9 * torch.randn(y.shape, generator=self.generator)
        return super().project(y * (1 + noise))
