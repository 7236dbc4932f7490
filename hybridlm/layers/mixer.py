"""The contract of a sequence mixer: the only thing that the composer knows of attention, S4 or Mamba."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridlm.context import Context
from hybridlm.errors import StateError
from hybridlm.layers.cost import Cost
from hybridlm.layers.init import Streams
from hybridlm.state import LayerState


class Mixer(nn.Module):
    """A causal map of (b, t, d_model) to the same shape, which can go on where it stopped.

    A subclass gives, in this order: `Config`, `State`, the class constants below, `__init__(config, d_model, *, eps)`,
    `reset_parameters`, `init_state`, `forward` and `cost`. No mixer inherits from another.

    **One verb.** `forward(x, state, ctx)` without a state starts from zero and returns None for it; with one it
    continues, by 1 token or many, and returns the next state. Its first line is `x, ctx = self.enter(x, state, ctx)`.
    What an override may change without changing a shape (a window, rope) is read from `self.config` when called.
    """

    Config: ClassVar[type]
    """A frozen, keyword-only dataclass. `resolve(d_model)` returns it with every default filled in and every shape
    checked; SpecError names field, value and rule."""

    State: ClassVar[type[LayerState]]
    """What it remembers; `State.kind` is the mixer's registry name."""

    letter: ClassVar[str] = ""
    """Its letter in the default alphabet, if it has one."""

    recurrent: ClassVar[bool] = False
    """Whether its output depends on the order of the past without being told positions. A stack that holds such a
    mixer needs no rotary embedding, so attention is NoPE there by default. Where it is a matter of the config, this
    is the default's, and `knows_order` says more."""

    rolls_back: ClassVar[bool] = False
    """Whether the last tokens can be forgotten exactly."""

    param_groups: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Parameters that the optimiser treats apart: {name: {"weight_decay": 0, "lr_max": 1e-3}}."""

    residual_projections: ClassVar[tuple[str, ...]] = ()
    """Names of the linear layers that write to the residual stream, nothing behind which has a width. The model scales
    them once by its depth; a block whose mixer reads more than the stream narrows them, so that they write d_model."""

    initial_fields: ClassVar[tuple[str, ...]] = ()
    """Config fields that only choose initial values; an override on a place with shared weights may not change them."""

    precise: ClassVar[tuple[str, ...]] = ()
    """Parameters that stay in float32 at least when a model is cast: phases turn by them, and a rounding adds up."""

    config: Any
    d_model: int

    def __init__(self, config: Any, d_model: int):
        super().__init__()
        self.config = config.resolve(d_model)
        self.d_model = d_model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mixer:
        """What `to`, `bfloat16` and their kin come to: a cast to half precision passes over what is `precise`."""
        held = [parameter for name, parameter in self.named_parameters() if name in self.precise]
        precise = {id(tensor) for parameter in held for tensor in (parameter, parameter.grad)}

        def apply(tensor: Tensor) -> Tensor:
            after = fn(tensor)
            rounded = id(tensor) in precise and after.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(after.device, torch.float32) if rounded else after

        return super()._apply(apply, recurse)

    def enter(self, x: Tensor, state: LayerState | None, ctx: Context | None) -> tuple[Tensor, Context]:
        """The mixer's door: refuses a spent state or other rows, supplies a missing ctx, puts zeros at the pads."""
        if state is not None:
            if not isinstance(state, self.State):
                raise StateError(f"{type(self).__name__} was given a state of kind {state.kind!r}")
            state.check(x.shape[0])
        if ctx is None:
            ctx = Context.of(x) if state is None else state.open(x, self.capacity(state))
        return ctx.keep_valid(x), ctx

    def forward(
        self, x: Tensor, state: LayerState | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, LayerState | None]:
        """x (b, t, d_model), t >= 1 -> y of the same shape and dtype, and the next state (None without one).

        Its annotation gives y a width of its own, "b t e": narrowed projections make it less than d_model.
        """
        raise NotImplementedError

    def init_state(
        self,
        batch: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LayerState:
        """An empty state of `batch` rows for documents of at most max_length tokens; dtype: the compute dtype."""
        raise NotImplementedError

    def capacity(self, state: LayerState) -> int | None:
        """The most tokens of a document that the state can hold; None: any number."""
        return None

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Initial values of every parameter, each from its own stream; without streams, torch's seed decides."""
        raise NotImplementedError

    @classmethod
    def knows_order(cls, config: Any) -> bool:
        """Whether a mixer of this resolved config is recurrent."""
        return cls.recurrent

    @classmethod
    def cost(cls, config: Any, d_model: int) -> Cost:
        """Its cost, from a resolved config alone. FLOPs are those of the reference backend."""
        raise NotImplementedError


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an SSM state under a compute dtype: float32, or float64 if that is what is computed in."""
    return torch.promote_types(torch.float32, dtype)
