"""What a model costs, from its spec alone: parameters, FLOPs of a call, bytes of state. Nothing is allocated.

    cost = model_cost(spec)
    cost.parameters                        # what model.parameters() holds, tied and shared weights once
    cost.training(2048).matmul             # FLOPs a token, forward and backward, in documents of 2,048 tokens
    cost.decoding(131_072).total           # FLOPs of one more token, the 131,072nd
    cost.state(131_072, torch.bfloat16, batch=8).total

Every mixer and MLP says what it costs (`layers/cost.py`); here that is added up along the stack, with what stands
around them: norms, embedding, head. Norms, activations and the softmax are left out of the FLOPs, as is usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from hybridlm.compose.options import Ranks
from hybridlm.compose.part import Part
from hybridlm.compose.plan import LayerPlan, Stack, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear, total
from hybridlm.layers.norm import norm_parameters
from hybridlm.layers.recover import decoder_cost
from hybridlm.registry import mixers

BACKWARD = 3  # forward and backward take three times the forward's FLOPs: two products for each one, as dx and dW
TWIN = "attention"


@dataclass(frozen=True)
class LayerCost:
    """A layer of the stack.

    plan:       what it is made of.
    mixers:     the cost of each of its mixers.
    mlp:        the cost of its MLP, nothing without one.
    norms:      entries of its norms.
    place:      the cost of what the place itself adds: corrections of shared weights, the way to the next mixer.
    first:      whether its weights are its own or first used here; a label's weights count once.
    """

    plan: LayerPlan
    mixers: tuple[Cost, ...]
    mlp: Cost
    norms: int
    place: Cost
    first: bool = True

    @property
    def parameters(self) -> int:
        """Entries of the weights that this layer adds to the model."""
        weights = sum(cost.parameters for cost in self.mixers) + self.mlp.parameters + self.norms
        return self.first * weights + self.place.parameters

    @property
    def attention(self) -> int:
        """Entries of those of its mixers that keep keys and values."""
        return self.first * sum(cost.parameters for cost in self.mixers if keeps_keys(cost))

    @property
    def idle(self) -> int:
        """Entries of those weights that a token passes by: of the experts that it does not choose."""
        return self.first * (self.mlp.parameters - self.mlp.used)

    def forward(self, tokens: int, past: int) -> Flops:
        """FLOPs of one row's call on `tokens` tokens after `past` in the state."""
        return total([*self.mixers, self.mlp, self.place]).forward(tokens, past)

    def state(self, max_length: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> StateBytes:
        """Bytes of state of `batch` rows of at most max_length tokens."""
        return _bytes(self.mixers, max_length, dtype, batch)


@dataclass(frozen=True)
class ModelCost:
    """A whole model.

    stack:     its plan, with the resolved spec.
    layers:    its layers, from the bottom up.
    embedding: what goes in: entries, and FLOPs where it is a linear layer.
    norm:      entries of the final norm.
    head:      the output matrix: entries (none when tied) and FLOPs.
    """

    stack: Stack
    layers: tuple[LayerCost, ...]
    embedding: Cost
    norm: int
    head: Cost

    @property
    def parameters(self) -> int:
        """Entries of all parameters; tied and shared weights count once."""
        around = self.embedding.parameters + self.norm + self.head.parameters
        return around + sum(layer.parameters for layer in self.layers)

    @property
    def active(self) -> int:
        """Entries of the parameters that one token uses: all, but for experts that it does not choose."""
        return self.parameters - sum(layer.idle for layer in self.layers)

    def forward(self, tokens: int, past: int = 0) -> Flops:
        """FLOPs of one row's call on `tokens` tokens after `past` in the state (0: no state), ends included."""
        stack = sum((layer.forward(tokens, past) * count for layer, count in self.kinds), Flops())
        return self.embedding.forward(tokens, past) + stack + self.head.forward(tokens, past)

    def state(self, max_length: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> StateBytes:
        """What `model.init_state(batch, max_length, dtype=dtype).nbytes` will be."""
        return sum((layer.state(max_length, dtype, batch * count) for layer, count in self.kinds), StateBytes())

    def training(self, context: int) -> Flops:
        """FLOPs a token of forward and backward on documents of `context` tokens."""
        return self.forward(context) * (BACKWARD / context)

    def decoding(self, context: int) -> Flops:
        """FLOPs of generating the last token of a document of `context` tokens, one token a call."""
        return self.forward(1, context - 1)

    def all_attention(self, max_length: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> StateBytes:
        """State of the twin: this stack with full attention in the place of every mixer, or of mixers side by side."""
        mixing = sum(bool(layer.mixers) for layer in self.layers)
        return _bytes([self._twin.cost()], max_length, dtype, batch * mixing)

    @cached_property
    def _twin(self) -> Part:
        """The attention of the twin: that of this stack, or attention as it is by default."""
        parts = (part for layer in self.stack.layers for part in layer.mixers if part.type == TWIN)
        width = self.stack.spec.d_model
        return next(parts, Part(TWIN, mixers.get(TWIN).Config().resolve(width), mixers, width, width))

    @cached_property
    def kinds(self) -> list[tuple[LayerCost, int]]:
        """Layers that are planned alike, and how many of each: thousands of layers are a few kinds."""
        counts = Counter(layer.plan.name for layer in self.layers)
        first = {layer.plan.name: layer for layer in reversed(self.layers)}
        return [(first[name], count) for name, count in counts.items()]


def model_cost(spec: ModelSpec) -> ModelCost:
    """The cost of the model that `spec` describes. PatternError, SpecError: as `plan` raises them."""
    return stack_cost(plan(spec))


def stack_cost(stack: Stack) -> ModelCost:
    """The cost of a planned model."""
    spec = stack.spec
    norm = norm_parameters(spec.norm, spec.d_model)
    return ModelCost(stack, tuple(_layers(stack)), _embedding(spec), norm, _head(spec))


def _embedding(spec: ModelSpec) -> Cost:
    """A table has no FLOPs; a linear layer has a bias."""
    if spec.reads_tokens:
        return Cost(spec.vocab_size * spec.d_model)
    channels = spec.input.channels
    return Cost((channels + 1) * spec.d_model, lambda tokens, past: linear(tokens, channels, spec.d_model))


def _head(spec: ModelSpec) -> Cost:
    """Of a language model a matrix, which may be the embedding's; a decoder; else a linear layer, once if pooled."""
    if spec.output.type == "recover":
        return decoder_cost(spec.d_model, spec.outputs, spec.norm)
    width, outputs, lm = spec.d_model, spec.outputs, spec.head == "lm"
    pooled = spec.output.pool != "none"
    parameters = 0 if spec.tie_embeddings else (width + (not lm)) * outputs
    return Cost(parameters, lambda tokens, past: linear(1 if pooled else tokens, width, outputs))


def keeps_keys(cost: Cost) -> bool:
    """Whether its state holds keys and values: this is what counts as attention, whatever it is called."""
    return cost.state(1, 1).kv > 0


def _layers(stack: Stack) -> Iterator[LayerCost]:
    """Equal places share one LayerCost, but for the first place of a label, which answers for the weights."""
    seen: set[str] = set()
    known: dict[tuple[str, bool], LayerCost] = {}
    for layer in stack.layers:
        first = layer.label is None or layer.label not in seen
        seen |= {layer.label} - {None}
        if (layer.name, first) not in known:
            known[layer.name, first] = _layer(layer, stack.spec, first)
        yield known[layer.name, first]


def _layer(layer: LayerPlan, spec: ModelSpec, first: bool) -> LayerCost:
    mlp = total([part.cost() for part in layer.mlps])
    mixers = tuple(part.cost() for part in layer.mixers)
    return LayerCost(layer, mixers, mlp, _norms(layer, spec), _place(layer, spec.d_model), first)


def _norms(layer: LayerPlan, spec: ModelSpec) -> int:
    """Entries of the norms before and after its mixers and its MLP, and of each mixer's own in a mean of several."""
    width, halves = spec.d_model, bool(layer.mixers) + bool(layer.mlp)
    joint = len(layer.mixers) if len(layer.mixers) > 1 and layer.combine == "norm_mean" else 0
    after = halves if layer.options.norms == "sandwich" else 0
    more = layer.options.reads(width) - width if layer.mixers else 0
    return norm_parameters(spec.norm, (halves + joint + after) * width + more)


def _place(layer: LayerPlan, width: int) -> Cost:
    """Its corrections, each a product from in to rank and one from rank to out; the way to the next mixer."""
    ranks = layer.options.low_rank or Ranks()
    halves = [(ranks.mixer, part) for part in layer.mixers] + [(ranks.mlp, part) for part in layer.mlps]
    readers = [(rank, reader) for rank, part in halves if rank for reader in part.readers().values()]
    size = sum(rank * (reader.in_features + reader.out_features) for rank, reader in readers)
    size += width * width * (layer.options.output == "next_mixer")
    return Cost(size, lambda tokens, past: linear(tokens, size, 1))


def _bytes(costs: Sequence[Cost], max_length: int, dtype: torch.dtype, batch: int) -> StateBytes:
    one = total(costs).state(max_length, dtype.itemsize)
    return StateBytes(one.kv * batch, one.ssm * batch)
