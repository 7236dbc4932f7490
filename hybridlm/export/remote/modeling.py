"""The model as transformers knows it. Around it stands `PreTrainedModel`; inside are the layers of hybridlm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridlm.compose.block import Block
from hybridlm.compose.options import Options, Ranks
from hybridlm.compose.part import Part
from hybridlm.compose.plan import LayerPlan
from hybridlm.compose.recompute import call
from hybridlm.compose.shared import SharedBlock
from hybridlm.context import Context, Cursor, outside_inference
from hybridlm.errors import SpecError
from hybridlm.export.remote.cache import HybridCache
from hybridlm.export.remote.configuration import HybridLMConfig
from hybridlm.export.remote.parts import MIXERS, MLPS
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer
from hybridlm.layers.norm import norm_class
from hybridlm.state import ModelState


class HybridLMForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, a stack of blocks, a norm, an output. `config.kinds` and `config.layers` say what the blocks are."""

    config_class = HybridLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _tied_weights_keys: ClassVar = {"lm_head.weight": "embed.weight"}  # where config.tie_word_embeddings says so
    _no_split_modules: ClassVar = ["Block", "SharedBlock"]

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        plans = layer_plans(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.shared = nn.ModuleDict()
        self.blocks = nn.ModuleList(self._block(plan) for plan in plans)
        self.final_norm = norm_class(config.norm)(config.d_model, config.norm_eps)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.reads_embeddings = any(plan.options.input == "concat_embeddings" for plan in plans)
        self.gradient_checkpointing = False
        self._is_stateful = not all(mixer.rolls_back for block in self.blocks for mixer in block.mixers.values())
        self._keep_in_fp32_modules_strict = self._precise()
        self.post_init()

    def _block(self, plan: LayerPlan) -> Block | SharedBlock:
        if plan.label is None:
            return Block(plan, self.config)
        if plan.label not in self.shared:
            self.shared[plan.label] = Block(plan, self.config)
        return SharedBlock(self.shared[plan.label], plan, self.config.d_model)

    def _precise(self) -> set[str]:
        """Names of the parameters that stay in float32 at least: phases turn by them, and a rounding adds up."""
        owners = {path: module for path, module in self.named_modules() if isinstance(module, Mixer)}
        return {f"{path}.{name}" for path, mixer in owners.items() for name in mixer.precise}

    def _init_weights(self, module: nn.Module) -> None:
        """For an embedding that grows. The layers' own first values are hybridlm's matter."""
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Embedding | nn.Linear) or all(tensor.is_meta for tensor in own):
            super()._init_weights(module)
        elif own:
            raise ValueError(
                f"{type(module).__name__}: this model has no weights to begin with; load some by from_pretrained, or "
                "build a fresh model with hybridlm, and export it"
            )

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of tokens."""
        return self.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Another table of tokens."""
        self.embed = value

    def get_output_embeddings(self) -> nn.Linear:
        """What gives the logits."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another output layer."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits of the next token; with labels, which are not shifted, the loss.

        input_ids: (b, t), or inputs_embeds (b, t, d). attention_mask: (b, t), or (b, past + t) with the columns of
        past_key_values before; 0 at pads, which may stand anywhere: positions count tokens, not columns.
        past_key_values: what an earlier call returned; it is changed by this one. hidden_states are zero at pads.
        """
        if output_attentions:
            raise ValueError("output_attentions: this model does not keep them; most of its layers have none")
        inputs = _inputs(input_ids, inputs_embeds)
        valid, cache = _valid(attention_mask, inputs), self._cache(past_key_values, use_cache)
        ctx, state = self._open(inputs, valid, cache)
        ctx = replace(ctx, journal=None if labels is None else [])
        x, seen = self._read(inputs, ctx, state, cache, bool(output_hidden_states))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, loss = self.lm_head(x[:, kept]), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
            loss = sum((record.balance for record in ctx.journal if self.training), loss)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=seen)
        return output if return_dict or return_dict is None else output.to_tuple()

    def _cache(self, given: Cache | None, use_cache: bool | None) -> HybridCache | None:
        """The cache of this call, if it has one."""
        if isinstance(given, HybridCache):
            return given
        if given is not None and given.get_seq_length():
            raise ValueError(f"past_key_values: a {type(given).__name__}; this model goes on from a HybridCache alone")
        wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
        return HybridCache() if wanted or given is not None else None

    def _open(
        self, inputs: Tensor, valid: Tensor | None, cache: HybridCache | None
    ) -> tuple[Context, ModelState | None]:
        """Where this call's tokens stand, and what came before them."""
        if cache is None:
            return Context.of(inputs, valid), None
        state = cache.begin(self.init_state, *inputs.shape[:2])
        return state.open(inputs, valid), state

    def _read(
        self, inputs: Tensor, ctx: Context, state: ModelState | None, cache: HybridCache | None, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """x (b, t, d) after the final norm, and if asked for what went into each block."""
        x = self._embed(inputs, ctx)
        ctx = replace(ctx, embeddings=x if self.reads_embeddings else None)
        aside, layers, seen = None, [], []
        for i, block in enumerate(self.blocks):
            seen += [ctx.restore(x)] if keep else []
            x, layer, aside, records = self._run(block, x, None if state is None else state.layers[i], ctx, aside)
            layers.append(layer)
            if ctx.journal is not None:
                ctx.journal.extend(records)
        if state is not None:
            cache.end(state.next(layers), inputs.shape[1], ctx.valid is not None)
        x = ctx.restore(self.final_norm(x))
        return x, (*seen, x) if keep else None

    def _run(self, block: nn.Module, *given: Any) -> tuple:
        """One block; in training, if gradients are checkpointed, computed again in the backward pass."""
        again = self.gradient_checkpointing and self.training and given[1] is None
        return checkpoint(call, block, *given, use_reentrant=False) if again else call(block, *given)

    def _embed(self, inputs: Tensor, ctx: Context) -> Tensor:
        x = ctx.align(inputs)
        x = ctx.keep_valid(self.dropout(x if inputs.is_floating_point() else self.embed(x)))
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x

    def init_state(self, batch: int, max_length: int) -> ModelState:
        """An empty state for `batch` rows of at most max_length tokens."""
        weight = self.embed.weight
        with outside_inference():
            layers = [
                block.init_state(batch, max_length, device=weight.device, dtype=weight.dtype) for block in self.blocks
            ]
            return ModelState(layers, Cursor.zeros(batch, device=weight.device), max_length)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """What `generate` calls for a cache: this model has one kind, as long as the text may become."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation: {generation_config.cache_implementation!r}; this model has a cache of its own, "
                "leave it out"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = HybridCache(max_cache_length)


def _inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give one of input_ids and inputs_embeds")
    return inputs_embeds if input_ids is None else input_ids


def _valid(attention_mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """(b, t) bool, True at this call's tokens; None: all of them are."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2 or len(attention_mask) != len(inputs):
        raise ValueError("attention_mask: it must be (batch, time), 1 at tokens and 0 at pads; no other form is read")
    if attention_mask.shape[1] < inputs.shape[1]:
        raise ValueError(f"attention_mask: {attention_mask.shape[1]} columns for {inputs.shape[1]} tokens")
    valid = attention_mask[:, -inputs.shape[1] :].bool()
    return None if valid.all() else valid


# ------------------------------------------------------------------------------------------------------- from a config
def layer_plans(config: HybridLMConfig) -> list[LayerPlan]:
    """The layers that a config describes, from the bottom up."""
    plans = {name: _layer_plan(name, kind, config.d_model) for name, kind in config.kinds.items()}
    return [plans[name] for name in config.layers]


def _layer_plan(name: str, kind: Mapping[str, Any], width: int) -> LayerPlan:
    ranks = Ranks(**kind["low_rank"]) if kind["low_rank"] else 0
    options = Options(norms=kind["norms"], input=kind["input"], output=kind["output"], low_rank=ranks)
    mixers = tuple(_part(MIXERS, given, options.reads(width), width) for given in kind["mixers"])
    mlp = None if kind["mlp"] is None else _part(MLPS, kind["mlp"], width, width)
    return LayerPlan(name, mixers, mlp, kind["combine"], kind["label"], options)


def _part(registry: Any, given: Mapping[str, Any], reads: int, writes: int) -> Part:
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name != "type"}
    if registry.get(given["type"]) is None:
        raise SpecError(f"kinds: this file has no {given['type']!r}; it is for the model that it came with")
    return Part(given["type"], registry.get(given["type"]).Config(**fields), registry, reads, writes)
