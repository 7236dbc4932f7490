"""What each branch of a trained model contributes: the same model without it.

A branch is a mixer: an attention layer, a state space, one of several side by side. Its contribution to the residual
stream is zeroed, or replaced by its mean over all held-out tokens, which keeps what it adds whatever it reads
(Meyes et al. 2019, arXiv:1901.08644; Wang et al. 2022, arXiv:2211.00593, section 2.1).

    {"0.mamba2.zero": metrics, "0.mamba2.mean": metrics, "1.attention.zero": ...}     layer from 0, mixer, how

All means are found in one reading. Then each batch climbs the stack once: what the blocks below a branch give is the
same without it, and is kept. Of twelve layers that makes 15 readings of 36. On a GPU their products are in TF32, which
halves the time: on an H200 the losses of twelve layers of width 256 are then off by 3e-5 at the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from hybridlm.ablate.measure import CHUNK, HeldOut, Sums, add, measure, metrics
from hybridlm.ablate.pack import marks
from hybridlm.ablate.results import Metrics
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan
from hybridlm.context import Context
from hybridlm.state import Layer
from hybridlm.train.samples import Batch, inputs_of

Replace = Callable[[Tensor, Tensor | None], Tensor]
"""What a mixer gives (b, t, d), and which of its tokens are real (b, t; None: all) -> what takes its place."""

Through = tuple[Tensor, Layer | None, Tensor | None]
"""What a block gives: the residual stream, its state, and the next aside."""


def knockouts(model: HybridLM, held_out: HeldOut) -> dict[str, Metrics]:
    """The held-out metrics without each branch in turn, by the names above; a second mixer of a kind is kind#2."""
    sums: dict[str, Sums] = {}
    with _tf32():
        means = _means(model, held_out)
        for batch in held_out.batches:
            for name, blocks in _climb(model, batch, means):
                with _stack(model, blocks):
                    add(sums.setdefault(name, {}), model, batch)
    return {name: metrics(found, held_out) for name, found in sums.items()}


def branches(model: HybridLM) -> list[dict[str, nn.Module]]:
    """Of each layer, from the bottom up, {"layer.mixer": the mixer}."""
    found: list[dict[str, nn.Module]] = []
    for i, layer in enumerate(plan(model.spec).layers):
        kinds = [part.type for part in layer.mixers]
        counts = [kinds[: j + 1].count(kind) for j, kind in enumerate(kinds)]
        names = [f"{i}.{kind}" + (f"#{nth}" if nth > 1 else "") for kind, nth in zip(kinds, counts, strict=True)]
        found.append(dict(zip(names, model.blocks[i].mixers.values(), strict=True)))
    return found


# ----------------------------------------------------------------------------------------------------------- the stack
def _climb(model: HybridLM, batch: Batch, means: Mapping[str, Tensor]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every knock-out by its name, from the bottom up, with the blocks that stand for the model's while it is read."""
    below: Sequence[nn.Module] = ()
    for i, mixers in enumerate(branches(model)):
        below, above = _below(model, i, below, batch), [_Bare(block) for block in model.blocks[i + 1 :]]
        for name, mixer in mixers.items():
            for how, replace in (("zero", _nothing), ("mean", _always(means[name]))):
                yield f"{name}.{how}", [*below, _Bare(model.blocks[i], {mixer: replace}), *above]


@torch.no_grad()
def _below(model: HybridLM, i: int, below: Sequence[nn.Module], batch: Batch) -> Sequence[nn.Module]:
    """What stands below layer i while the batch is read again, from what stood below the layer before."""
    if i == 0 or inputs_of(batch).shape[1] > CHUNK:  # what is read in pieces is too long to keep
        return [_Bare(block) for block in model.blocks[:i]]
    kept = _Kept(_Bare(model.blocks[i - 1]))
    with _stack(model, [*below, kept]):
        model.hidden(inputs_of(batch), **marks(batch))
    return [kept]


@contextmanager
def _stack(model: HybridLM, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, these are the model's blocks."""
    own = model.blocks
    model.blocks = nn.ModuleList(blocks)
    try:
        yield
    finally:
        model.blocks = own


class _Bare(nn.Module):
    """A block as written, in which what some of its mixers give is replaced: shared weights act elsewhere as ever.

    A compiled block is not called: its code knows no hook that came later.
    """

    def __init__(self, block: nn.Module, replaced: Mapping[nn.Module, Replace] = MappingProxyType({})) -> None:
        super().__init__()
        self.block, self.replaced = block, replaced

    def init_state(self, batch: int, max_length: int, **where: torch.device | torch.dtype) -> Layer:
        """That of the block."""
        return self.block.init_state(batch, max_length, **where)

    def forward(self, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None = None) -> Through:
        """As Block."""
        hooks = [mixer.register_forward_hook(partial(_act, replace)) for mixer, replace in self.replaced.items()]
        try:
            return self.block.forward(x, state, ctx, aside)
        finally:
            for hook in hooks:
                hook.remove()


class _Kept(nn.Module):
    """A block that runs once, and gives what it gave from then on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.given = block, None

    def forward(self, x: Tensor, state: Layer | None, ctx: Context, aside: Tensor | None = None) -> Through:
        """As Block."""
        if self.given is None:
            self.given = self.block(x, state, ctx, aside)
        return self.given


@contextmanager
def _tf32() -> Iterator[None]:
    """Within the block, products on a GPU are in TF32; nothing changes on a CPU."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, True
    try:
        yield
    finally:
        products.allow_tf32 = before


# ------------------------------------------------------------------------------------------ what takes a branch's place
def _act(replace: Replace, _mixer: nn.Module, given: tuple, output: tuple) -> tuple:
    y, state = output
    return replace(y, given[2].valid), state


def _means(model: HybridLM, held_out: HeldOut) -> dict[str, Tensor]:
    """(d,) the mean of what each branch gives over all held-out tokens, pads left out."""
    layers = branches(model)
    means = {name: _Mean() for mixers in layers for name in mixers}
    seen = [{mixer: means[name] for name, mixer in mixers.items()} for mixers in layers]
    with _stack(model, [_Bare(block, mixers) for block, mixers in zip(model.blocks, seen, strict=True)]):
        measure(model, held_out)
    return {name: mean.total / max(1, mean.count) for name, mean in means.items()}


class _Mean:
    """A Replace that replaces nothing, and sums what it sees."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def __call__(self, y: Tensor, valid: Tensor | None) -> Tensor:
        real = y.flatten(0, 1) if valid is None else y[valid]
        self.total, self.count = self.total + real.double().sum(dim=0).cpu(), self.count + len(real)
        return y


def _always(mean: Tensor) -> Replace:
    return lambda y, valid: mean.to(y).expand_as(y)


def _nothing(y: Tensor, valid: Tensor | None) -> Tensor:
    return torch.zeros_like(y)
