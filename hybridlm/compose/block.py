"""One layer of the stack: pre-norm, residual, a mixer and an MLP."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridlm.compose.plan import LayerPlan, Part
from hybridlm.compose.spec import ModelSpec
from hybridlm.context import Context
from hybridlm.layers.init import Streams
from hybridlm.layers.mixer import Mixer
from hybridlm.layers.norm import norm_class
from hybridlm.state import Layer


class SideBySide(nn.Module):
    """Mixers on the same input, their outputs added, or averaged after a norm each (Dong et al. 2024, Hymba, eq. 3)."""

    def __init__(self, mixers: Sequence[Mixer], norms: Sequence[nn.Module]):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(norms)

    def reset_parameters(self, streams: Streams) -> None:
        """Each mixer's own, and the norms at 1."""
        for i, mixer in enumerate(self.mixers):
            mixer.reset_parameters(streams.at(f"mixers.{i}"))
        for norm in self.norms:
            norm.reset_parameters()

    def init_state(self, batch: int, max_length: int, **where: Any) -> tuple:
        """A tuple: one state a mixer."""
        return tuple(mixer.init_state(batch, max_length, **where) for mixer in self.mixers)

    def forward(self, x: Tensor, state: tuple | None, ctx: Context) -> tuple[Tensor, tuple | None]:
        """(b, t, d) -> (b, t, d), and the tuple of next states."""
        states = state or (None,) * len(self.mixers)
        pairs = [mixer(x, one, ctx) for mixer, one in zip(self.mixers, states, strict=True)]
        outputs = [y for y, _ in pairs]
        if self.norms:
            outputs = [norm(y) / len(outputs) for norm, y in zip(self.norms, outputs, strict=True)]
        return torch.stack(outputs).sum(dim=0), state and tuple(one for _, one in pairs)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); either half may be absent."""

    def __init__(self, layer: LayerPlan, spec: ModelSpec):
        super().__init__()
        norm = norm_class(spec.norm)
        self.norm = norm(spec.d_model, spec.norm_eps) if layer.mixers else None
        self.mixer = _mixer(layer, spec) if layer.mixers else None
        self.mlp_norm = norm(spec.d_model, spec.norm_eps) if layer.mlp else None
        self.mlp = layer.mlp.cls(layer.mlp.config, spec.d_model) if layer.mlp else None
        self.dropout = nn.Dropout(spec.dropout)

    @property
    def writes(self) -> int:
        """How many times it adds to the residual stream."""
        return (self.mixer is not None) + (self.mlp is not None)

    def reset_parameters(self, streams: Streams) -> None:
        """Each part's own, from its own streams."""
        for name in ("norm", "mixer", "mlp_norm", "mlp"):
            part = getattr(self, name)
            if part is not None:
                part.reset_parameters(streams.at(name))

    def init_state(self, batch: int, max_length: int, **where: Any) -> Layer:
        """The mixer's empty state; () for an MLP alone, which remembers nothing."""
        return () if self.mixer is None else self.mixer.init_state(batch, max_length, **where)

    def forward(
        self, x: Tensor, state: Layer | None, ctx: Context, mixer: nn.Module | None = None
    ) -> tuple[Tensor, Layer | None]:
        """The residual stream x (b, t, d) -> the same after this layer, and the layer's next state.

        mixer: this block's own under another config, where a place with shared weights has one.
        """
        if self.mixer is not None:
            y, state = (mixer or self.mixer)(self.norm(x), state, ctx)
            x = x + self.dropout(y)
        if self.mlp is not None:
            x = x + self.dropout(self._mlp(self.mlp_norm(x), ctx))
        return x, state

    def _mlp(self, x: Tensor, ctx: Context) -> Tensor:
        return self.mlp(x, ctx) if getattr(self.mlp, "reads_context", False) else self.mlp(x)


class SharedBlock(nn.Module):
    """A place in the stack whose weights live in `model.shared`. It has none of its own.

    Settings of the mixer that change no shape may differ from place to place: the place then calls the shared mixer
    through a copy of its outer shell, which holds the same parameters and submodules under another config.
    """

    def __init__(self, block: Block, layer: LayerPlan):
        super().__init__()
        self.place = (block, _under(block.mixer, layer))  # a tuple is no submodule: the weights have one name only

    @property
    def block(self) -> Block:
        """The shared block."""
        return self.place[0]

    @property
    def mixer(self) -> nn.Module | None:
        """The shared mixer under the config of this place."""
        return self.place[1] or self.block.mixer

    @property
    def writes(self) -> int:
        """How many times it adds to the residual stream."""
        return self.block.writes

    def init_state(self, batch: int, max_length: int, **where: Any) -> Layer:
        """This place's own empty state."""
        return () if self.mixer is None else self.mixer.init_state(batch, max_length, **where)

    def forward(self, x: Tensor, state: Layer | None, ctx: Context) -> tuple[Tensor, Layer | None]:
        """As Block."""
        block, mixer = self.place
        return block(x, state, ctx, mixer)


def _mixer(layer: LayerPlan, spec: ModelSpec) -> Mixer | SideBySide:
    built = [_build(part, spec) for part in layer.mixers]
    if len(built) == 1:
        return built[0]
    normed = layer.combine == "norm_mean"
    return SideBySide(built, [norm_class(spec.norm)(spec.d_model, spec.norm_eps) for _ in built] if normed else [])


def _build(part: Part, spec: ModelSpec) -> Mixer:
    return part.cls(part.config, spec.d_model, eps=spec.norm_eps)


def _under(mixer: nn.Module | None, layer: LayerPlan) -> nn.Module | None:
    """The mixer under the configs of this layer; None where they are its own."""
    inner = list(mixer.mixers) if isinstance(mixer, SideBySide) else [mixer] if layer.mixers else []
    wanted = [part.config for part in layer.mixers]
    if [one.config for one in inner] == wanted:
        return None
    shells = [_shell(one, config=config) for one, config in zip(inner, wanted, strict=True)]
    if not isinstance(mixer, SideBySide):
        return shells[0]
    held = _shell(mixer.mixers, _modules={str(i): shell for i, shell in enumerate(shells)})
    return _shell(mixer, _modules={**mixer._modules, "mixers": held})


def _shell(module: nn.Module, **changes: Any) -> Any:
    """A shallow copy: its dictionaries of parameters, submodules and hooks are the original's own, but for changes."""
    shell = copy.copy(module)
    shell.__dict__.update(changes)
    return shell
