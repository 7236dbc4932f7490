"""The toy's bugs made again in two mixers that are built otherwise: the delta rule, and a convolution in the long.

Each bug is written once, against a `Heart`: the op that does a mixer's work, in the module that calls it. Both ops take
`state` and `document` by keyword and give (y, state).
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from seeds import PATCHES
from torch import Tensor, nn

from hybridlm.context import Context
from hybridlm.layers import diagonal, gated_deltanet, init, s4d, short_conv
from hybridlm.layers.cost import Cost, Flops, StateBytes


@dataclass(frozen=True)
class Heart:
    """A mixer's class, the linear layer that ends it, the parameters that hold its rates, and its op."""

    name: str
    mixer: type
    last: str
    rates: str
    module: ModuleType
    op: str

    @contextmanager
    def beats(self, change):
        """While suspended, the op is called as change(op, *args, **options)."""
        true = getattr(self.module, self.op)
        with patch.object(self.module, self.op, lambda *args, **options: change(true, *args, **options)):
            yield

    @contextmanager
    def told(self, **changes):
        """While suspended, attributes of the mixer's class are these."""
        with ExitStack() as stack:
            for name, value in changes.items():
                stack.enter_context(patch.object(self.mixer, name, value))
            yield


HEARTS = (
    Heart("gated_deltanet", gated_deltanet.GatedDeltaNet, "out_proj", "A_log", gated_deltanet, "gated_delta_rule"),
    Heart("s4d", s4d.S4D, "output_linear", "ssm.log_A_real", diagonal, "diagonal_ssm"),
)


def remade(law, *only):
    """Enter a bug of every heart, or of those named: a function from a heart to a context manager."""

    def enter(bug):
        for heart in HEARTS:
            if not only or heart.name in only:
                PATCHES[f"{heart.name}: {bug.__name__}"] = (law, heart.name, lambda heart=heart: bug(heart))
        return bug

    return enter


def many(x) -> bool:
    """Whether a call reads more than one token."""
    return x.shape[1] > 1


def emptied(state):
    return None if state is None else state * 0


# ------------------------------------------------------------------------------------------------ from state to state
@remade("C2")
def state_dropped_on_a_chunk(heart):
    return heart.beats(
        lambda op, x, *rest, state=None, **options: op(x, *rest, state=emptied(state) if many(x) else state, **options)
    )


@remade("C2")
def state_dropped_in_a_step(heart):
    return heart.beats(
        lambda op, x, *rest, state=None, **options: op(x, *rest, state=state if many(x) else emptied(state), **options)
    )


@remade("C2")
def last_token_of_a_chunk_not_in_the_state(heart):
    def short(op, x, *rest, state=None, **options):
        y, after = op(x, *rest, state=state, **options)
        return (y, after) if not many(x) or state is None else (y, after + 1e-3 * (state - after))

    return heart.beats(short)


@remade("C2", "gated_deltanet")
def conv_state_dropped_on_a_chunk(heart):
    true = short_conv.causal_conv1d

    def forgetful(x, *rest, state=None, **options):
        return true(x, *rest, state=emptied(state) if many(x) else state, **options)

    return patch.object(short_conv, "causal_conv1d", forgetful)


@remade("C1")
def a_step_is_a_thousandth_off(heart):
    def off(op, x, *rest, **options):
        y, after = op(x, *rest, **options)
        return (y, after) if many(x) else (1.001 * y, after)

    return heart.beats(off)


@remade("C1")
def a_chunk_reads_its_last_state(heart):
    def late(op, x, *rest, **options):
        y, after = op(x, *rest, **options)
        return (y + 1e-3 * after.mean() if many(x) and after is not None else y), after

    return heart.beats(late)


@remade("C3")
def acausal_by_a_thousandth(heart):
    def seer(op, x, *rest, **options):
        y, after = op(x, *rest, **options)
        return y + 1e-3 * y.roll(-1, 1), after

    return heart.beats(seer)


@remade("C4")
def rows_of_a_batch_talk(heart):
    def loud(op, x, *rest, **options):
        y, after = op(x, *rest, **options)
        return y + 1e-3 * y.mean(0, keepdim=True), after

    return heart.beats(loud)


# ------------------------------------------------------------------------------------------------- pads and documents
@remade("C5", "gated_deltanet")
def pads_take_steps_of_their_own(heart):
    return patch.object(Context, "keep_valid", lambda self, x: x)


@remade("C5", "gated_deltanet")
def conv_remembers_pads(heart):
    true = short_conv.causal_conv1d
    return patch.object(
        short_conv, "causal_conv1d", lambda *args, **options: true(*args, **options | {"lengths": None})
    )


@remade("C5", "s4d")
def state_taken_after_the_pads(heart):
    return heart.beats(lambda op, *args, **options: op(*args, **options | {"lengths": None}))


@remade("C6")
def documents_are_not_told_apart(heart):
    return heart.beats(lambda op, *args, **options: op(*args, **options | {"document": None}))


@remade("C6")
def only_the_first_change_of_document_is_seen(heart):
    def blind(op, *args, document=None, **options):
        return op(*args, document=None if document is None else document.clamp(max=1), **options)

    return heart.beats(blind)


@remade("C6")
def a_new_document_begins_with_the_old_state(heart):
    def kept(op, *args, document=None, **options):
        return op(*args, document=None if document is None else document - document[:, :1], **options)

    return heart.beats(kept)


@remade("C6", "gated_deltanet")
def documents_meet_in_the_conv(heart):
    true = short_conv.causal_conv1d
    return patch.object(
        short_conv, "causal_conv1d", lambda *args, **options: true(*args, **options | {"document": None})
    )


# ----------------------------------------------------------------------------------------- what a state is, and traces
@remade("C7")
def rows_are_taken_in_the_old_order(heart):
    true = heart.mixer.State.map

    def wrong(self, change):
        changed = true(self, change)
        return (
            replace(changed, ssm=self.ssm[: len(changed.ssm)].clone()) if len(changed.ssm) == len(self.ssm) else changed
        )

    return patch.object(heart.mixer.State, "map", wrong)


@remade("C9")
def claims_to_roll_back(heart):
    return patch.object(heart.mixer.State, "check_rollback", lambda self, count: None)


@remade("C10")
def a_fork_shares_the_state(heart):
    return patch.object(heart.mixer.State, "map", lambda self, change: replace(self))


@remade("C10")
def a_spent_state_goes_on(heart):
    true = heart.mixer.State.advance

    def advance(self, **tensors):
        after = true(self, **tensors)
        self.spent = False
        return after

    return patch.object(heart.mixer.State, "advance", advance)


@remade("C10")
def the_input_is_overwritten(heart):
    true = heart.mixer.forward

    def forward(self, x, state=None, ctx=None):
        if not torch.is_grad_enabled() and ctx is not None and ctx.valid is None:
            x.mul_(1.0001)
        return true(self, x, state, ctx)

    return heart.told(forward=forward)


@remade("C8")
def fresh_memory_is_read(heart):
    def reader(op, *args, **options):
        y, after = op(*args, **options)
        room = torch.empty_like(y)
        room[..., 1:] = y[..., 1:]
        return torch.where(room.isnan(), room, y), after

    return heart.beats(reader)


@remade("C11")
def a_call_remembers_the_one_before(heart):
    kept = {}

    def haunted(op, *args, **options):
        y, after = op(*args, **options)
        before = kept.get("y", 0.0)
        kept["y"] = y.detach().mean()
        return y + 1e-3 * before, after

    return heart.beats(haunted)


@remade("C12")
def the_state_is_rounded_to_bf16(heart):
    def coarse(op, *args, **options):
        y, after = op(*args, **options)
        return y, None if after is None else after.bfloat16().to(after.dtype)

    return heart.beats(coarse)


@remade("C12")
def the_state_is_held_in_bf16(heart):
    true = heart.mixer.init_state

    def init_state(self, *args, **options):
        state = true(self, *args, **options)
        return replace(state, ssm=state.ssm.bfloat16())

    return heart.told(init_state=init_state)


@remade("C13")
def noisy_in_the_last_bits(heart):
    def noisy(op, *args, **options):
        y, after = op(*args, **options)
        return y * (1 + 1e-6 * torch.randn(()).item()), after

    return heart.beats(noisy)


# ---------------------------------------------------------------------------------------------------------- gradients
class NearlyRight(torch.autograd.Function):
    """The identity, whose gradient is 1% short."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return 0.99 * dy


@remade("C14")
def no_gradient_through_the_state(heart):
    def cut(op, *args, state=None, **options):
        return op(*args, state=None if state is None else state.detach(), **options)

    return heart.beats(cut)


@remade("C14")
def a_gradient_is_one_percent_short(heart):
    return heart.beats(lambda op, x, *rest, **options: op(NearlyRight.apply(x), *rest, **options))


@remade("C16")
def large_numbers_overflow(heart):
    def unsafe(op, *args, **options):
        y, after = op(*args, **options)
        return y * (y.square().exp() / y.square().exp()), after

    return heart.beats(unsafe)


# ------------------------------------------------------------------------------------------- parameters, weights, books
def parameter(module: nn.Module, path: str) -> Tensor:
    return dict(module.named_parameters())[path]


@remade("C17")
def rates_are_left_unset(heart):
    true = heart.mixer.reset_parameters

    def reset_parameters(self, streams=None):
        kept = parameter(self, heart.rates).detach().clone()
        true(self, streams)
        init.fill(parameter(self, heart.rates), kept)

    return heart.told(reset_parameters=reset_parameters)


@remade("C17")
def weights_come_from_the_global_seed(heart):
    true = heart.mixer.reset_parameters
    return heart.told(reset_parameters=lambda self, streams=None: true(self))


@remade("C18")
def a_buffer_is_not_saved(heart):
    true = heart.mixer.__init__

    def build(self, *args, **options):
        true(self, *args, **options)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    return heart.told(__init__=build)


@remade("C19")
def rates_decay(heart):
    groups = {name: group for name, group in heart.mixer.param_groups.items() if name != heart.rates}
    return heart.told(param_groups=groups)


@remade("C22", "gated_deltanet")
def rates_are_cached(heart):
    return caching(heart.mixer, "gates", "A_log")


@remade("C22", "s4d")
def the_system_is_cached(heart):
    return caching(diagonal.DiagonalSSM, "forward", "log_A_real")


def caching(owner, method, name):
    """A method that computes with the first values it ever saw of a parameter."""
    true = getattr(owner, method)

    def cached(self, *args, **options):
        rates = getattr(self, name)
        with patch.object(rates, "data", self.__dict__.setdefault("kept", rates.detach().clone())):
            return true(self, *args, **options)

    return patch.object(owner, method, cached)


@remade("C23")
def the_last_weight_is_read_past_its_module(heart):
    true = heart.mixer.forward

    def forward(self, x, state=None, ctx=None):
        last = getattr(self, heart.last)
        with (
            patch.object(last, "forward", None),
            patch.object(type(last), "__call__", lambda layer, y: F.linear(y, layer.weight, layer.bias)),
        ):
            return true(self, x, state, ctx)

    return heart.told(forward=forward)


def miscounted(heart, error: Cost):
    true = heart.mixer.cost.__func__
    return heart.told(cost=classmethod(lambda cls, config, d_model: true(cls, config, d_model) + error))


@remade("C24")
def one_parameter_too_many(heart):
    return miscounted(heart, Cost(1))


@remade("C24")
def one_byte_too_many(heart):
    return miscounted(heart, Cost(0, state=lambda max_length, itemsize: StateBytes(ssm=1)))


@remade("C24")
def five_percent_too_many_flops(heart):
    return miscounted(heart, Cost(0, lambda tokens, past: Flops(matmul=300 * tokens)))
