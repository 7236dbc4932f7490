"""Several models of one spec trained side by side: their weights as the rows of one matrix.

Row k of `weights` (m, n) holds every parameter of member k, one after another, and so does row k of its gradient. The
parameters of a member's model are views of its row. One AdamW with one learning rate a row steps them all at once.

The gradients are found in one of three ways, with the same numbers up to rounding:

    apart:    member by member, each the plain model. On a CPU, which has no launches to save.
    captured: the same as one CUDA graph, the members side by side (captured.py). On a GPU, where a small model waits
              for launches and not for arithmetic.
    stacked:  one call of torch.func for all members, functional_call under vmap, without our kernels. On a GPU, where
              a graph cannot be replayed. docs/log.md has the measurements.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from hybridlm.compose.build import build
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.layers.moe import MoE
from hybridlm.ops import backend
from hybridlm.train.optim import parameter_groups
from hybridlm.train.routers import Rebalancing
from hybridlm.train.samples import Batch, inputs_of

MARKS = ("valid", "segment_ids")
BOUND_BY_LAUNCHES = 5e10  # FLOPs of a step: a GPU does them in the milliseconds that their launches take


class Members:
    """m models of one spec, built each with its seed, whose parameters are rows of `weights`.

    weights: (m, n) float32 on the device. gradient: the same, of the losses; added to until it is zeroed.
    models:  the m models; what changes a row changes its model.
    decay:   (n,) weight decay of every entry. lr_max: (n,) what bounds its learning rate; inf where nothing does.
    """

    def __init__(self, spec: ModelSpec, seeds: Sequence[int], weight_decay: float, device: torch.device) -> None:
        self.models = [build(spec, seed=seed).to(device) for seed in seeds]
        named = dict(self.models[0].named_parameters())
        self.places = _places(named)
        rows = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in self.models]
        self.weights = nn.Parameter(torch.stack(rows).float())
        self.gradient = torch.zeros_like(self.weights, requires_grad=False)
        self.decay, self.lr_max = self._rules(weight_decay)
        for k, model in enumerate(self.models):
            self._bind(model, k)

    def __len__(self) -> int:
        return len(self.models)

    def _rules(self, weight_decay: float) -> tuple[Tensor, Tensor]:
        decay, lr_max = torch.empty_like(self.weights[0]), torch.empty_like(self.weights[0])
        for group in parameter_groups(self.models[0], weight_decay=weight_decay, lr=1.0):
            for name in group["names"]:
                place, _ = self.places[name]
                decay[place], lr_max[place] = group["weight_decay"], group["lr_max"]
        return decay.detach(), lr_max.detach()

    def _bind(self, model: HybridLM, k: int) -> None:
        for name, parameter in model.named_parameters():
            place, shape = self.places[name]
            parameter.data = self.weights.detach()[k, place].view(shape)
            parameter.grad = self.gradient[k, place].view(shape)

    def stacked(self) -> dict[str, Tensor]:
        """{name: (m, ...)}, views of the weights that ask for gradients."""
        held = self.weights.detach()
        views = {name: held[:, place].view(-1, *shape) for name, (place, shape) in self.places.items()}
        return {name: view.requires_grad_() for name, view in views.items()}

    def buffers(self) -> list[dict[str, Tensor]]:
        """What training changes of a member besides its weights: the biases of balanced routers."""
        return [dict(model.named_buffers()) for model in self.models]

    def set_buffers(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Put back what `buffers` gave."""
        for model, held in zip(self.models, saved, strict=True):
            for name, buffer in model.named_buffers():
                buffer.copy_(held[name])


def _places(named: Mapping[str, Tensor]) -> dict[str, tuple[slice, torch.Size]]:
    """{name: (its entries in a row, its shape)}."""
    places, start = {}, 0
    for name, parameter in named.items():
        places[name] = (slice(start, start + parameter.numel()), parameter.shape)
        start += parameter.numel()
    return places


# ----------------------------------------------------------------------------------------------------------- gradients
Way = Literal["apart", "stacked", "captured"]


def best_way(members: Members, flops: float, dropout: bool) -> Way:
    """The quickest way to the gradients of members. flops: of a member's step.

    Experts whose load is balanced go apart, and so does what has to draw masks anew, unless it is so small that it is
    bound by its launches: torch.func cannot use our kernels.
    """
    experts = any(isinstance(module, MoE) for module in members.models[0].modules())
    if not members.weights.is_cuda or experts:
        return "apart"
    if not dropout:
        return "captured"
    return "stacked" if len(members) > 1 and flops <= BOUND_BY_LAUNCHES else "apart"


def apart(members: Members, precision: str) -> Callable[[Sequence[Batch], Sequence[bool]], Tensor]:
    """(batches, active) -> losses (m,): each active member's own, its gradient added to its row."""
    rebalancing = [Rebalancing() for _ in members.models]

    def step(batches: Sequence[Batch], active: Sequence[bool]) -> Tensor:
        losses = torch.full((len(members),), torch.nan, device=members.weights.device)
        for k, model in enumerate(members.models):
            if not active[k]:
                continue
            model.train()
            with precision_of(members, precision):
                out = model(inputs_of(batches[k]), **marks(batches[k]), targets=batches[k]["targets"])
            out.loss.backward()
            losses[k] = out.loss.detach()
            rebalancing[k].add(out.router)
            rebalancing[k].step(model.blocks, lambda load: load)
        return losses

    return step


def stacked(members: Members, precision: str) -> Callable[[Sequence[Batch], Sequence[bool]], Tensor]:
    """As `apart`, all members in one call; a member that is not active is computed for nothing."""
    bare = copy.deepcopy(members.models[0]).to("meta").train()
    leaves, buffers = members.stacked(), _stack(members.buffers())

    def loss(weights: dict[str, Tensor], held: dict[str, Tensor], batch: Batch) -> Tensor:
        given = {**marks(batch), "targets": batch["targets"]}
        return functional_call(bare, (weights, held), (inputs_of(batch),), given).loss

    mapped = vmap(loss, randomness="different")

    def step(batches: Sequence[Batch], active: Sequence[bool]) -> Tensor:
        with precision_of(members, precision), backend.use("reference"):
            losses = mapped(leaves, buffers, _stack(batches))
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        members.gradient.add_(torch.cat([gradient.flatten(1) for gradient in found], dim=1))
        return losses.detach()

    return step


def marks(batch: Batch) -> dict[str, Tensor]:
    """What a batch says of its tokens, besides what they are."""
    return {name: batch[name] for name in MARKS if name in batch}


def _stack(dicts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in dicts]) for name in dicts[0]}


def precision_of(members: Members, precision: str) -> Any:
    """The context of a forward pass: bf16 is autocast."""
    if precision == "bf16":
        return torch.autocast(members.weights.device.type, dtype=torch.bfloat16)
    return nullcontext()


# ----------------------------------------------------------------------------------------------------------- optimiser
class RowAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) of a matrix, with a learning rate a row; rows share nothing.

    Each row's gradient is clipped by its own norm first. A row that is not active, or whose gradient is not finite,
    stays as it is, to the last bit.

    lr: (m,) the peaks. clip: of a row's norm, or None.
    """

    def __init__(
        self,
        members: Members,
        lr: Tensor,
        *,
        clip: float | None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        weights = members.weights
        super().__init__([weights], {"lr": 1.0})
        self.members, self.lr, self.clip = members, lr[:, None], clip
        self.betas, self.eps = betas, eps
        self.state[weights] = {"step": 0, "mean": torch.zeros_like(weights), "square": torch.zeros_like(weights)}

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, factor: float = 1.0, active: Tensor | None = None) -> Tensor:
        """One step at `factor` of the peak learning rates. active: (m,) bool; None: all.

        Returns (m,) bool: the rows whose gradient was not finite.
        """
        (weights,) = self.param_groups[0]["params"]
        gradient, state = self.members.gradient, self.state[weights]
        norm = gradient.norm(dim=1, keepdim=True)
        finite = norm.isfinite()
        keep = finite if active is None else finite & active[:, None]
        if self.clip is not None:
            gradient = gradient * (self.clip / (norm + 1e-6)).clamp(max=1.0)
        state["step"] += 1
        self._move(weights, gradient, state, factor, keep)
        return ~finite[:, 0]

    def _move(self, weights: Tensor, gradient: Tensor, state: dict, factor: float, keep: Tensor) -> None:
        (one, two), t = self.betas, state["step"]
        lr = torch.minimum(self.lr * factor, self.members.lr_max)
        mean = state["mean"].lerp(gradient, 1 - one)
        square = (state["square"] * two).addcmul_(gradient, gradient, value=1 - two)
        scale = (square / (1 - two**t)).sqrt_().add_(self.eps)
        moved = (weights * (1 - lr * self.members.decay)).sub_(lr * mean / scale / (1 - one**t))
        for tensor, value in ((weights, moved), (state["mean"], mean), (state["square"], square)):
            tensor.copy_(torch.where(keep, value, tensor))
