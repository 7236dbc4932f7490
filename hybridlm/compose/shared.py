"""A place in the stack whose weights live in `model.shared`, and what it may have of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hybridlm.compose.block import Block
from hybridlm.compose.options import Ranks
from hybridlm.compose.plan import LayerPlan
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer
from hybridlm.state import Layer


class SharedBlock(nn.Module):
    """The shared block as one place calls it.

    Of its own a place has its state, settings of the mixer that change no shape, whether its result goes to the next
    mixer, and low-rank corrections. It calls the shared block through copies of outer shells, which hold the same
    parameters, submodules and hooks, but for those that are its own.
    """

    def __init__(self, block: Block, layer: LayerPlan, width: int):
        super().__init__()
        aside = layer.options.output == "next_mixer"
        self.proj = Linear(width, width, bias=False) if aside else None
        self.low_rank = nn.Module() if layer.options.low_rank else None
        settings, corrections = _under(block, layer), dict(self._corrections(block, layer))
        place = overlaid(overlaid(overlaid(block, settings), corrections), {"proj": self.proj})
        # What torch.compile looks at before it takes another place's code: it sees no attribute that hides a submodule.
        self.own = " ".join([*settings, *corrections, *["proj"] * aside])
        self.place = {self.own: place}  # a dictionary is no submodule: the weights have one name only

    @property
    def block(self) -> Block:
        """The shared block as it is here."""
        return self.place[self.own]

    @property
    def mixer(self) -> nn.Module | None:
        """The shared mixer as it is here."""
        return self.block.mixer

    @property
    def mixers(self) -> dict[str, Mixer]:
        """As Block."""
        return self.block.mixers

    @property
    def mlp(self) -> nn.Module | None:
        """The shared MLP as it is here."""
        return self.block.mlp

    @property
    def writes(self) -> int:
        """How many times it adds to the residual stream."""
        return self.block.writes

    def reset_parameters(self, streams: Streams) -> None:
        """What is its own."""
        if self.proj is not None:
            init.linear(self.proj, streams, "proj")
        for path, module in self.named_modules():
            if isinstance(module, Corrected):
                module.reset_parameters(streams.at(path))

    def init_state(self, batch: int, max_length: int, **where: Any) -> Layer:
        """This place's own empty state."""
        return self.block.init_state(batch, max_length, **where)

    def forward(
        self, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None = None
    ) -> tuple[Tensor, Layer | None, Tensor | None]:
        """As Block."""
        return self.block(x, state, ctx, aside)

    def _corrections(self, block: Block, layer: LayerPlan) -> Iterator[tuple[str, Corrected]]:
        """(path in the block, what stands there at this place); `low_rank` names them by the same paths."""
        ranks = layer.options.low_rank or Ranks()
        halves = [(ranks.mixer, root, part) for root, part in zip(block.mixers, layer.mixers, strict=True)]
        halves += [(ranks.mlp, "mlp", part) for part in layer.mlps]
        for rank, root, part in halves:
            for path in part.readers() if rank else []:
                *owner, name = f"{root}.{path}".split(".")
                corrected = Corrected(block.get_submodule(".".join(owner)), name, rank)
                _plant(self.low_rank, [*owner, name], corrected)
                yield f"{root}.{path}", corrected


class Corrected(nn.Module):
    """W x + B A x: a linear layer W of the shared weights, and the correction of one place. Begins as W x.

    Glorioso et al. 2024, Zamba2 (arXiv:2411.15242), figure 2; Hu et al. 2021, LoRA (arXiv:2106.09685), eq. 3.
    """

    def __init__(self, owner: nn.Module, name: str, rank: int):
        super().__init__()
        linear = getattr(owner, name)
        self.linear = (owner, name)  # looked up in each call, so that one that is put in its place is found
        self.A = Linear(linear.in_features, rank, bias=False)
        self.B = Linear(rank, linear.out_features, bias=False)

    def reset_parameters(self, streams: Streams) -> None:
        """A as every linear layer, B at 0."""
        init.linear(self.A, streams, "A")
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        owner, name = self.linear
        return getattr(owner, name)(x) + self.B(self.A(x))


def overlaid(module: nn.Module, parts: Mapping[str, nn.Module | None]) -> Any:
    """A copy of the module's outer shells with other submodules at the given paths; all else is the original's own.

    An attribute of the copy hides the submodule of that name; a container is asked for its entries, and gets its own.
    """
    here = {path: part for path, part in parts.items() if "." not in path}
    for name in {path.partition(".")[0] for path in parts if "." in path}:
        inner = {path.partition(".")[2]: part for path, part in parts.items() if path.startswith(f"{name}.")}
        here[name] = overlaid(getattr(module, name), inner)
    container = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    return _shell(module, **({"_modules": {**module._modules, **here}} if container else here))


def _shell(module: nn.Module, **changes: Any) -> Any:
    """A shallow copy: its dictionaries of parameters, submodules and hooks are the original's own, but for changes."""
    shell = copy.copy(module)
    shell.__dict__.update(changes)
    return shell


def _under(block: Block, layer: LayerPlan) -> dict[str, Mixer]:
    """The mixers whose config is another one here, by their paths in the block."""
    return {
        path: _shell(mixer, config=part.config)
        for (path, mixer), part in zip(block.mixers.items(), layer.mixers, strict=True)
        if mixer.config != part.config
    }


def _plant(root: nn.Module, path: list[str], module: nn.Module) -> None:
    """Make it a submodule of root at this path."""
    for name in path[:-1]:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name]
    root.add_module(path[-1], module)
