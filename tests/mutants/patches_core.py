"""Bugs seeded in the context, in the state and in the model."""

from dataclasses import replace
from unittest.mock import patch

import torch
from seeds import patched

import hybridlm.compose.cost as cost
import hybridlm.context as context
import hybridlm.state as state
from hybridlm.compose.block import Block
from hybridlm.compose.cost import ModelCost
from hybridlm.compose.model import HybridLM
from hybridlm.compose.part import Part
from hybridlm.compose.shared import Corrected, SharedBlock
from hybridlm.context import Context, Cursor
from hybridlm.layers.cost import Cost, Flops
from hybridlm.state import ModelState


# ---------------------------------------------------------------------------------------------------- context and clock
@patched("C5", "attention")
def outputs_are_not_put_back():
    with patch.object(Context, "restore", lambda self, y: y):
        yield


@patched("C5", "mamba2")
def compaction_turns_the_tokens_round():
    true = context._compact

    def turned(valid):
        order, lengths, prefix = true(valid)
        if order is None:
            return order, lengths, prefix
        return order.gather(1, (lengths[:, None] - 1 - torch.arange(order.shape[1])) % order.shape[1]), lengths, prefix

    with patch.object(context, "_compact", turned):
        yield


@patched("C5", "attention")
def pads_take_positions():
    with patch.object(context, "_after", lambda start, positions, lengths: positions[:, -1] + 1):
        yield


@patched("C6", "attention")
def the_last_document_is_forgotten():
    true = context._documents

    def documents(ids, lengths, start, segment):
        document, positions, _ = true(ids, lengths, start, segment)
        return document, positions, segment

    with patch.object(context, "_documents", documents):
        yield


@patched("C6", "attention")
def positions_run_on_over_documents():
    true = context._documents

    def documents(ids, lengths, start, segment):
        document, positions, last = true(ids, lengths, start, segment)
        return document, start[:, None] + torch.arange(positions.shape[1]).expand_as(positions), last

    with patch.object(context, "_documents", documents):
        yield


@patched("C7", "attention")
def selected_rows_keep_the_old_positions():
    true = Cursor.select

    def select(self, rows):
        return true(self, torch.arange(len(rows)) % len(self.position))

    with patch.object(Cursor, "select", select):
        yield


@patched("C7", "attention")
def emptied_rows_keep_their_positions():
    with patch.object(Cursor, "reset", lambda self, rows: None):
        yield


@patched("C7", "mamba2")
def emptied_rows_keep_their_state():
    with patch.object(state, "leaves", lambda layers: []):
        yield


@patched("C10", "attention")
def forks_share_the_clock():
    with patch.object(Cursor, "fork", lambda self: self):
        yield


@patched("C10", "attention")
def a_full_state_is_overrun():
    with patch.object(context, "_check_capacity", lambda lengths, max_length: None):
        yield


@patched("C10", "mamba")
def a_spent_state_goes_on():
    with (
        patch.object(ModelState, "check", lambda self: None),
        patch.object(state.LayerState, "check", lambda self, b: None),
    ):
        yield


@patched("C9", "attention")
def rollback_forgets_to_move_the_clock():
    with patch.object(ModelState, "rollback", lambda self, count: self):
        yield


@patched("C9", "attention")
def rollback_into_a_document_that_was_overwritten():
    with patch.object(Cursor, "check_rollback", lambda self, count: None):
        yield


@patched("C9", "attention")
def rollback_one_token_short():
    true = ModelState.rollback
    with patch.object(ModelState, "rollback", lambda self, count: true(self, max(0, count - 1))):
        yield


@patched("C14", "mamba2")
def states_are_overwritten_under_gradients():
    with patch.object(state.LayerState, "in_place", True):
        yield


@patched("C14", "attention")
def a_graph_loses_its_memory_to_the_next_call():
    """The cache is overwritten as soon as gradients are off, while the call before still needs it."""
    with patch.object(state.LayerState, "in_place", property(lambda self: not torch.is_grad_enabled())):
        yield


@patched("C18", "attention")
def a_loaded_state_forgets_its_position():
    true = ModelState.save

    def save(self, path):
        self.cursor.position.zero_()
        true(self, path)

    with patch.object(ModelState, "save", save):
        yield


# --------------------------------------------------------------------------------------------------------- whole models
HYBRID = "[mamba2] [attention] [s4]"


@patched("C5", HYBRID)
def the_model_does_not_put_back_its_outputs():
    with patch.object(Context, "restore", lambda self, y: y):
        yield


@patched("C2", HYBRID)
def the_model_passes_no_state_to_its_last_layer():
    true = Block.forward

    def forward(self, x, held, ctx, aside=None):
        lost = held is not None and held.kind == "s4" and x.shape[1] > 1
        y, after, aside = true(self, x, None if lost else held, ctx, aside)
        return y, held if after is None else after, aside

    with patch.object(Block, "forward", forward):
        yield


@patched("C6", HYBRID)
def the_model_drops_the_documents():
    true = HybridLM.forward

    def forward(self, ids, held=None, *, segment_ids=None, **options):
        return true(self, ids, held, **options)

    with patch.object(HybridLM, "forward", forward):
        yield


@patched("C17", HYBRID)
def a_block_forgets_its_mlp():
    true = Block.reset_parameters

    def reset_parameters(self, streams):
        mlp, self.mlp = self.mlp, None
        true(self, streams)
        self.mlp = mlp

    with patch.object(Block, "reset_parameters", reset_parameters):
        yield


@patched("C24", HYBRID)
def the_books_forget_the_head():
    true = ModelCost.forward
    with patch.object(
        ModelCost,
        "forward",
        lambda self, tokens, past=0: true(self, tokens, past) + Flops(matmul=-2.0 * tokens * 32 * 40),
    ):
        yield


# ------------------------------------------------------------------------------------------------- what a block may say
OPTIONS = (
    "[wide-attention]@x{output: next_mixer, low_rank: 2} [mamba2]{norms: sandwich} [s4] [wide-attention]@x{low_rank: 3}"
)


@patched("C23", OPTIONS)
def a_place_uses_the_correction_of_another():
    first = {}

    def forward(self, x):
        owner, name = self.linear
        chosen = first.setdefault((owner, name), self)
        return getattr(owner, name)(x) + chosen.B(chosen.A(x))

    with patch.object(Corrected, "forward", forward):
        yield


@patched("C23", OPTIONS)
def norms_behind_mixers_are_passed_over():
    true = Block._mix

    def mix(self, *given):
        with patch.dict(self.__dict__, post_norm=None):
            return true(self, *given)

    with patch.object(Block, "_mix", mix):
        yield


@patched("C5", OPTIONS)
def embeddings_are_not_aligned():
    true = Block._mix

    def mix(self, x, held, ctx, aside):
        turned = None if ctx.embeddings is None else ctx.restore(ctx.embeddings)
        return true(self, x, held, replace(ctx, embeddings=turned), aside)

    with patch.object(Block, "_mix", mix):
        yield


@patched("C2", OPTIONS)
def what_went_aside_is_lost_where_a_call_continues():
    true = Block.forward

    def forward(self, x, held, ctx, aside=None):
        return true(self, x, held, ctx, None if ctx.past else aside)

    with patch.object(Block, "forward", forward):
        yield


@patched("C17", OPTIONS)
def corrections_are_not_initialised():
    with patch.object(SharedBlock, "reset_parameters", lambda self, streams: None):
        yield


@patched("C24", OPTIONS)
def the_books_forget_what_places_add():
    with patch.object(cost, "_place", lambda layer, width: Cost(0)):
        yield


@patched("C24", OPTIONS)
def the_books_keep_what_narrowing_took_off():
    with patch.object(Part, "cost", lambda self: self.cls.cost(self.config, self.reads)):
        yield
