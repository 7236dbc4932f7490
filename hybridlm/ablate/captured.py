"""The gradients of a pack as one CUDA graph, each member on a stream of its own: small models share the GPU.

A small model leaves most of a GPU idle and waits for launches. Replayed as a graph, the members' kernels, which are
our own, run side by side, and a step costs one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hybridlm.ablate.pack import Members, marks, precision_of
from hybridlm.compose.compiled import compile
from hybridlm.train.graphs import WARM_UP, aside, capture
from hybridlm.train.samples import Batch, inputs_of

WORTH_COMPILING = 150_000
"""Layers x members x steps from which on compiling, which takes a minute, is won back: it cuts a step's kernels."""


class Captured:
    """As `apart` of pack.py, with the same numbers: (batches, active) -> losses (m,), gradients added to the rows.

    The first steps of a kind run as they are, then one is captured. Another set of active members, or batches of
    another shape, begin anew. What is returned lies where the next step writes.

    steps: of the whole training; long ones compile the members' blocks first, whose numbers are then alike up to
    rounding.
    """

    def __init__(self, members: Members, precision: str, steps: int = 0) -> None:
        self.members, self.precision, self.device = members, precision, members.weights.device
        self.parameters = [list(model.parameters()) for model in members.models]
        self.streams = [torch.cuda.Stream(self.device) for _ in members.models]
        self.losses = torch.empty(len(members), device=self.device)
        self.kind: object = None
        if len(members) * len(members.models[0].blocks) * steps >= WORTH_COMPILING:
            for model in members.models:
                compile(model, dynamic=False, memory=1.0)

    def __call__(self, batches: Sequence[Batch], active: Sequence[bool]) -> Tensor:
        shared = [next(j for j, other in enumerate(batches) if other is batch) for batch in batches]
        shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} for batch in batches]
        if (kind := (shared, shapes, list(active))) != self.kind:
            self._begin(kind, batches)
        for j in set(shared):
            for name, held in self.inputs[j].items():
                held.copy_(batches[j][name], non_blocking=True)
        if self.steps < WARM_UP:
            aside(self.device, self._run)
        else:
            self.replay = self.replay or capture(self._run)
            self.replay()
        self.steps += 1
        return self.losses

    def _begin(self, kind: tuple, batches: Sequence[Batch]) -> None:
        self.kind, self.steps = kind, 0
        self.replay: Callable[[], None] | None = None
        shared, _, self.active = kind
        held = {j: {name: torch.empty_like(t, device=self.device) for name, t in batches[j].items()} for j in shared}
        self.inputs = [held[j] for j in shared]
        self.losses.fill_(torch.nan)

    def _run(self) -> None:
        """Every active member beside the others, all after what came before and before what comes after."""
        main = torch.cuda.current_stream(self.device)
        for k, stream in enumerate(self.streams):
            if self.active[k]:
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    self._find(k)
        for k, stream in enumerate(self.streams):
            if self.active[k]:
                main.wait_stream(stream)

    def _find(self, k: int) -> None:
        """A member's loss, and its gradient added to its row."""
        batch = self.inputs[k]
        with precision_of(self.members, self.precision):
            loss = self.members.models[k].train()(inputs_of(batch), **marks(batch), targets=batch["targets"]).loss
        found = torch.autograd.grad(loss, self.parameters[k], materialize_grads=True)
        self.members.gradient[k].add_(torch.cat([gradient.flatten() for gradient in found]))
        self.losses[k].copy_(loss.detach())
