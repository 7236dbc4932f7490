"""One layer of the stack: norms, a mixer and an MLP around the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridlm.compose.plan import LayerPlan
from hybridlm.compose.spec import ModelSpec
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
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
    """x + mixer(norm(x)), then x + mlp(mlp_norm(x)); either half may be absent. `Options` says what else there is:

    norms: sandwich             x + post_norm(mixer(norm(x))), then x + mlp_post_norm(mlp(mlp_norm(x)))
                                Ding et al. 2021 (arXiv:2105.13290), section 2.4
    input: concat_embeddings    the mixer reads norm([x, e])
                                Glorioso et al. 2024, Zamba (arXiv:2405.16712), figure 2
    output: next_mixer          x stays; proj(mlp(mlp_norm(mixer(norm(x))))) is `aside` of the next block, whose mixer
                                reads norm(x + aside). The same, eq. 6
    """

    def __init__(self, layer: LayerPlan, spec: ModelSpec):
        super().__init__()
        width, options = spec.d_model, layer.options
        norm = partial(norm_class(spec.norm), eps=spec.norm_eps)
        sandwich, aside = options.norms == "sandwich", options.output == "next_mixer"
        self.reads_embeddings = options.input == "concat_embeddings"
        self.norm = norm(options.reads(width)) if layer.mixers else None
        self.mixer = _mixer(layer, spec) if layer.mixers else None
        self.post_norm = norm(width) if layer.mixers and sandwich else None
        self.mlp_norm = norm(width) if layer.mlp else None
        self.mlp = layer.mlp.build() if layer.mlp else None
        self.mlp_post_norm = norm(width) if layer.mlp and sandwich else None
        self.proj = Linear(width, width, bias=False) if aside and layer.label is None else None
        self.dropout = nn.Dropout(spec.dropout)

    @property
    def mixers(self) -> dict[str, Mixer]:
        """{path in the block: mixer}: none, one, or several side by side."""
        if isinstance(self.mixer, SideBySide):
            return {f"mixer.mixers.{i}": mixer for i, mixer in enumerate(self.mixer.mixers)}
        return {} if self.mixer is None else {"mixer": self.mixer}

    @property
    def writes(self) -> int:
        """How many times it adds to the residual stream."""
        return 0 if self.proj is not None else (self.mixer is not None) + (self.mlp is not None)

    def reset_parameters(self, streams: Streams) -> None:
        """Each part's own, from its own streams."""
        for name in ("norm", "mixer", "post_norm", "mlp_norm", "mlp", "mlp_post_norm"):
            part = getattr(self, name)
            if part is not None:
                part.reset_parameters(streams.at(name))
        if self.proj is not None:
            init.linear(self.proj, streams, "proj")

    def init_state(self, batch: int, max_length: int, **where: Any) -> Layer:
        """The mixer's empty state; () for an MLP alone, which remembers nothing."""
        return () if self.mixer is None else self.mixer.init_state(batch, max_length, **where)

    def forward(
        self, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None = None
    ) -> tuple[Tensor, Layer | None, Tensor | None]:
        """The residual stream x (b, t, d) -> the same after this layer, the layer's next state, and the next aside.

        aside: (b, t, d), what the block before adds to the input of this one's mixer alone; None: nothing.
        """
        if self.proj is not None:
            y, state = self._mix(x, state, ctx, aside) if self.mixer is not None else (x, state)
            y = self._feed(y, ctx) if self.mlp is not None else y
            return x, state, self.dropout(self.proj(y))
        if self.mixer is not None:
            y, state = self._mix(x, state, ctx, aside)
            x = x + self.dropout(y)
        if self.mlp is not None:
            x = x + self.dropout(self._feed(x, ctx))
        return x, state, None

    def _mix(self, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None) -> tuple[Tensor, Layer | None]:
        x = x if aside is None else x + aside
        x = torch.cat([x, ctx.embeddings], dim=-1) if self.reads_embeddings else x
        y, state = self.mixer(self.norm(x), state, ctx)
        return y if self.post_norm is None else self.post_norm(y), state

    def _feed(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.mlp_norm(x)
        y = self.mlp(x, ctx) if getattr(self.mlp, "reads_context", False) else self.mlp(x)
        return y if self.mlp_post_norm is None else self.mlp_post_norm(y)


def _mixer(layer: LayerPlan, spec: ModelSpec) -> Mixer | SideBySide:
    built = [part.build(eps=spec.norm_eps) for part in layer.mixers]
    if len(built) == 1:
        return built[0]
    normed = layer.combine == "norm_mean"
    return SideBySide(built, [norm_class(spec.norm)(spec.d_model, spec.norm_eps) for _ in built] if normed else [])
