"""The model that a pattern describes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hybridlm.checks import whole
from hybridlm.compose.block import Block
from hybridlm.compose.door import check_answer, check_call
from hybridlm.compose.memory import require_device, require_dtype, require_memory
from hybridlm.compose.part import writers
from hybridlm.compose.plan import LayerPlan, Stack
from hybridlm.compose.rate import at_time_scale
from hybridlm.compose.readout import readout_of
from hybridlm.compose.recompute import call, recomputed
from hybridlm.compose.shared import SharedBlock
from hybridlm.compose.spec import ModelSpec
from hybridlm.context import Context, Cursor, outside_inference
from hybridlm.errors import SpecError, StateError
from hybridlm.layers import init
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.norm import norm_class
from hybridlm.layers.recover import Decoder
from hybridlm.layers.router import RouterRecord
from hybridlm.ops.linear import linear
from hybridlm.state import ModelState, leaves


@dataclass
class Output:
    """What a call gives.

    logits:        (b, t, vocab), or None where a loss was asked for; of other heads what they answer, in any case:
                   (b, classes) or (b, outputs), and with pool: none (b, t, classes) or (b, t, outputs).
    state:         the next state, if one was given.
    loss:          what training minimises: the head's own loss and, in training mode, what balanced routers ask for.
    cross_entropy: the own loss of head lm, classify and recover: the mean over the targets, in nats, in any mode.
    squared_error: the own loss of head regress: the mean over the targets' numbers, in any mode.
    router:        one record for every layer with a mixture of experts, where a loss was asked for.
    """

    logits: Tensor | None
    state: ModelState | None = None
    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    squared_error: Tensor | None = None
    router: tuple[RouterRecord, ...] = ()


class HybridLM(nn.Module):
    """Embedding, a stack of blocks, a norm, an output. `spec` says what it is, down to the last number."""

    def __init__(self, stack: Stack):
        super().__init__()
        self.spec: ModelSpec = stack.spec
        spec = stack.spec
        self.embed = self._input_layer()
        self.dropout = nn.Dropout(spec.dropout)
        self.shared = nn.ModuleDict()
        self.blocks = nn.ModuleList(self._block(layer) for layer in stack.layers)
        self.reads_embeddings = any(layer.options.input == "concat_embeddings" for layer in stack.layers)
        self.final_norm = norm_class(spec.norm)(spec.d_model, spec.norm_eps)
        self.lm_head = self.head = None
        if spec.output.type == "recover":
            self.head = Decoder(spec.d_model, spec.outputs, spec.norm, spec.norm_eps)
        elif spec.head != "lm":
            self.head = Linear(spec.d_model, spec.outputs)
        elif not spec.tie_embeddings:
            self.lm_head = Linear(spec.d_model, spec.outputs, bias=False)
        self.readout = readout_of(spec)
        self.recomputes = 0

    def _input_layer(self) -> nn.Embedding | nn.Linear:
        spec = self.spec
        if spec.reads_tokens:
            return nn.Embedding(spec.vocab_size, spec.d_model)
        return Linear(spec.input.channels, spec.d_model)

    def _block(self, layer: LayerPlan) -> Block | SharedBlock:
        if layer.label is None:
            return Block(layer, self.spec)
        if layer.label not in self.shared:
            self.shared[layer.label] = Block(layer, self.spec)
        return SharedBlock(self.shared[layer.label], layer, self.spec.d_model)

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        valid: Tensor | None = None,
        segment_ids: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Output:
        """Read tokens or signals, from the beginning or from where `state` stands.

        ids: (b, t) integers; with embed: linear the signals, (b, t, channels) floating numbers.
        valid: (b, t) bool, False at pads, which may stand anywhere and whose logits are those of a zero vector.
        segment_ids: (b, t) integers; a change of number begins a new document.
        targets: (b, t), already shifted; -100 is ignored, and so are targets at pads. With targets there are no logits.
        Other heads: classify (b,) or, with pool: none, (b, t); regress (b, outputs) or (b, t, outputs), NaN is ignored;
        recover (b, t), as they stand: what is at a step is asked at that step.
        A pooled answer is of each row's valid tokens in this call; of a row without any, that of a zero vector.

        StateError: the state is spent, full, or of another model or batch. SpecError: a tensor of the wrong shape,
        dtype or range. UnsupportedError: a pooled answer of packed rows, or a mean that goes on from a state; head:
        recover with either. Each is raised before the state changes.
        """
        check_call(self.spec, ids, state, valid, segment_ids, self.embed.weight.dtype)
        check_answer(self.spec, ids, state, valid, segment_ids, targets)
        journal = None if targets is None else []
        x, state = self._read(ids, state, valid, segment_ids, journal)
        logits, own = self.readout(x, self.logits, targets, valid, self._bare_weight())
        if targets is None:
            return Output(logits, state)
        balance = [record.balance for record in journal] if self.training else []
        return Output(logits, state, sum(balance, own), **{self.readout.measure: own}, router=tuple(journal))

    def hidden(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        valid: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """As forward, up to the final norm: x (b, t, d) and the next state. `logits(x)` does the rest but pooling."""
        check_call(self.spec, ids, state, valid, segment_ids, self.embed.weight.dtype)
        return self._read(ids, state, valid, segment_ids)

    def _read(
        self,
        ids: Tensor,
        state: ModelState | None,
        valid: Tensor | None,
        segment_ids: Tensor | None,
        journal: list[RouterRecord] | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        segment_ids = None if segment_ids is None else segment_ids.long()
        ctx = Context.of(ids, valid, segment_ids) if state is None else state.open(ids, valid, segment_ids)
        x = self._embed(ctx.align(self._numbers(ids)), ctx)
        ctx = replace(ctx, journal=journal, embeddings=x if self.reads_embeddings else None)
        aside, layers = None, []
        for i, block in enumerate(self.blocks):
            run = recomputed if self.recomputes and i % self.recomputes == 0 else call
            x, layer, aside, records = run(block, x, None if state is None else state.layers[i], ctx, aside)
            layers.append(layer)
            if journal is not None:
                journal += [replace(record, layer=i) for record in records]
        return ctx.restore(self.final_norm(x)), state and state.next(layers)

    def logits(self, x: Tensor) -> Tensor:
        """x (..., d), after the final norm -> (..., vocab), or (..., classes), (..., outputs) of another head."""
        if self.head is not None:
            return self.head(x)
        return linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)

    def _bare_weight(self) -> Tensor | None:
        """(vocab, d), if logits are the product with it and nothing else: no hook, no other layer in its place."""
        layer = self.embed if self.lm_head is None else self.lm_head
        bare = self.head is None and type(layer) in (nn.Embedding, nn.Linear, Linear)
        return layer.weight if bare and (self.lm_head is None or not _hooked(layer)) else None

    def _numbers(self, inputs: Tensor) -> Tensor:
        """ids as int64, signals in the dtype of the weights."""
        return inputs.to(torch.int64 if self.spec.reads_tokens else self.embed.weight.dtype)

    def _embed(self, inputs: Tensor, ctx: Context) -> Tensor:
        x = ctx.keep_valid(self.dropout(self.embed(inputs)))
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.spec.residual_in_fp32 else x

    def checkpoint_blocks(self, every: int = 1) -> None:
        """In training keep, of every `every`-th block, only what goes in, and compute the rest again for its gradients.

        Activation checkpointing: memory for time, about a third more at every = 1; gradients are the same bit for bit,
        dropout and the balance loss of routers included. 0: keep everything, which is the default.

        SpecError: not a whole number, 0 or more.
        """
        self.recomputes = whole("every", every, low=0)

    def set_time_scale(self, factor: float) -> None:
        """Read signals with `factor` times the step from now on: 2 for half the rate that the model was trained at.

        Every mixer with a step of its own (s4, s4d, s5) takes it as its time_scale, whatever it had; so does the
        spec, and a state from before is refused. 1 is the rate of training.

        UnsupportedError, before anything changes, names the layers that cannot: what counts tokens knows no time.
        """
        self.spec = at_time_scale(self.spec, factor)
        for block in self.blocks:
            for mixer in block.mixers.values():
                mixer.config = replace(mixer.config, time_scale=float(factor))

    def init_state(
        self,
        batch: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ModelState:
        """An empty state for `batch` rows of at most max_length tokens; device and dtype default to the weights'.

        StateError: a size that is no positive integer, or more bytes than the machine has.
        """
        try:
            whole("batch", batch)
            whole("max_length", max_length, high=1 << 40)
        except SpecError as error:
            raise StateError(f"init_state: {error}") from error
        weight = self.embed.weight
        where = {
            "device": require_device(weight.device if device is None else device, StateError),
            "dtype": require_dtype(weight.dtype if dtype is None else dtype, StateError),
        }
        with outside_inference():
            sketch = [block.init_state(1, max_length, device="meta", dtype=where["dtype"]) for block in self.blocks]
            nbytes = batch * sum(leaf.nbytes for leaf in leaves(sketch))
            require_memory(nbytes, where["device"], f"a state for {batch} x {max_length} tokens", StateError)
            layers = [block.init_state(batch, max_length, **where) for block in self.blocks]
            cursor = Cursor.zeros(batch, device=where["device"])
        return ModelState(layers, cursor, max_length, self.spec.fingerprint)

    def init_weights(self, seed: int | None = None) -> None:
        """Set every parameter to its initial value; the same seed gives the same values, whatever else is in the model.

        Without a seed, torch's generator gives one. The projections that write to the residual stream are divided by
        the square root of their number (Radford et al. 2019, section 2.3).
        """
        streams = Streams.drawn() if seed is None else Streams(seed)
        if self.spec.reads_tokens:
            init.normal(self.embed.weight, 0.02, streams("embed.weight"))
        for name in ("embed", "lm_head", "head"):
            if isinstance(layer := getattr(self, name), nn.Linear):
                init.linear(layer, streams, name)
        if isinstance(self.head, Decoder):
            self.head.reset_parameters(streams.at("head"))
        self.final_norm.reset_parameters()
        for path, block in self._weighted_blocks().items():
            block.reset_parameters(streams.at(path))
        self._scale_by_depth()

    def _weighted_blocks(self) -> dict[str, Block | SharedBlock]:
        """Path of every block that may have weights of its own."""
        own = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        return own | {f"shared.{label}": block for label, block in self.shared.items()}

    @torch.no_grad()
    def _scale_by_depth(self) -> None:
        writes = sum(block.writes for block in self.blocks)
        writing = [block.block if isinstance(block, SharedBlock) else block for block in self.blocks if block.writes]
        for projection in {projection: None for block in writing for projection in writers(block)}:  # a shared one once
            projection.weight.mul_(writes**-0.5)


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or _has_any_global_hook()
