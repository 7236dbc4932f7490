"""Seeded bugs of the real mixers, of the context and of the model: one patch each, and the law that must catch it."""

from contextlib import contextmanager
from unittest.mock import patch

import torch

import hybridlm.context as context
import hybridlm.state as state
from hybridlm.compose.block import Block
from hybridlm.compose.cost import ModelCost
from hybridlm.compose.model import HybridLM
from hybridlm.context import Context, Cursor
from hybridlm.layers import attention, heads, mamba, mamba2, s4, short_conv, sliding_window
from hybridlm.layers.cost import Flops
from hybridlm.state import ModelState

PATCHES = {}
"""name -> (law, what is under test, the patch)."""


def seeded(law, subject):
    """Enter a context manager that seeds a bug."""

    def enter(function):
        PATCHES[function.__name__] = (law, subject, contextmanager(function))
        return function

    return enter


def without(module, op, **missing):
    """Patch an op of a mixer's module so that it does not get some of its arguments."""
    true = getattr(module, op)
    return patch.object(module, op, lambda *args, **options: true(*args, **(options | missing)))


# ----------------------------------------------------------------------------------------------------------- attention
@seeded("C8", "attention")
def reads_the_slot_after_the_last():
    def attend_cache(self, q, held, ctx):
        slots = torch.arange(ctx.extent + 1)
        k, v = (tensor[:, : ctx.extent + 1].to(q.dtype) for tensor in (held.k, held.v))
        return attention.attention(q, k, v, mask=slots <= ctx.positions[:, :, None] + 1)

    with patch.object(attention.Attention, "attend_cache", attend_cache):
        yield


@seeded("C8", "attention")
def pads_are_written_to_the_cache():
    with patch.object(attention, "last_document", lambda ctx: None):
        yield


@seeded("C2", "attention")
def rotary_starts_anew_in_every_call():
    true = heads.Heads.project
    with patch.object(heads.Heads, "project", lambda self, x, positions: true(self, x, positions - positions[:, :1])):
        yield


@seeded("C1", "attention")
def keys_of_other_heads_in_the_cache():
    def attend_cache(self, q, held, ctx):
        k, v = (tensor[:, : ctx.extent].to(q.dtype).roll(1, 2) for tensor in (held.k, held.v))
        return attention.attention(q, k, v, mask=torch.arange(ctx.extent) <= ctx.positions[:, :, None])

    with patch.object(attention.Attention, "attend_cache", attend_cache):
        yield


@seeded("C6", "attention")
def documents_see_one_another():
    def causal(document):
        t = document.shape[1]
        return torch.ones(len(document), t, t, dtype=torch.bool).tril()

    with patch.object(attention, "causal_in_document", causal):
        yield


@seeded("C6", "attention")
def every_document_sees_the_cache():
    true = attention.Attention.attend_both

    def attend_both(self, q, k, v, held, ctx):
        first = ctx.document == ctx.document
        blind = Context(ctx.positions, ctx.lengths, ctx.valid, ctx.document * ~first, ctx.past, ctx.extent)
        return true(self, q, k, v, held, blind)

    with patch.object(attention.Attention, "attend_both", attend_both):
        yield


@seeded("C1", "sliding_window")
def window_one_token_too_wide():
    true = sliding_window.window_attention

    def wider(q, k, v, *, size, **options):
        return true(q, k, v, size=size + 1, **options)

    with patch.object(sliding_window, "window_attention", wider):
        yield


@seeded("C2", "sliding_window")
def ring_written_from_its_beginning_in_every_call():
    true = sliding_window.write

    def write(cache, new, slots, keep):
        return true(cache, new, torch.arange(slots.shape[1]).expand_as(slots) % cache.shape[1], keep)

    with patch.object(sliding_window, "write", write):
        yield


@seeded("C5", "sliding_window")
def pads_take_slots_of_the_ring():
    with patch.object(sliding_window, "last_document", lambda ctx: None):
        yield


@seeded("C9", "sliding_window")
def ring_claims_to_roll_back():
    with patch.object(sliding_window.RingState, "check_rollback", lambda self, count: None):
        yield


# -------------------------------------------------------------------------------------------------- state space layers
@seeded("C5", "mamba")
def pads_take_steps():
    with patch.object(Context, "keep_valid", lambda self, x: x):
        yield


@seeded("C5", "mamba2")
def conv_state_from_pads():
    with without(short_conv, "causal_conv1d", lengths=None):
        yield


@seeded("C6", "mamba")
def conv_ignores_documents():
    with without(short_conv, "causal_conv1d", document=None):
        yield


@seeded("C6", "mamba")
def scan_ignores_documents():
    with without(mamba, "selective_scan", document=None):
        yield


@seeded("C6", "mamba2")
def ssd_ignores_documents():
    with without(mamba2, "ssd", document=None):
        yield


@seeded("C2", "mamba2")
def ssd_starts_from_zero_on_chunks():
    true = mamba2.ssd

    def forgetful(x, *args, state=None, **options):
        return true(x, *args, state=state if x.shape[1] == 1 or state is None else state * 0, **options)

    with patch.object(mamba2, "ssd", forgetful):
        yield


@seeded("C14", "mamba")
def gradient_stops_at_the_state():
    true = mamba.selective_scan

    def cut(*args, state=None, **options):
        return true(*args, state=None if state is None else state.detach(), **options)

    with patch.object(mamba, "selective_scan", cut):
        yield


@seeded("C5", "s4")
def s4_takes_its_state_after_the_pads():
    with without(s4, "s4_scan", lengths=None):
        yield


@seeded("C6", "s4")
def s4_ignores_documents():
    with without(s4, "s4_scan", document=None):
        yield


# ---------------------------------------------------------------------------------------------------- context and clock
@seeded("C5", "attention")
def outputs_are_not_put_back():
    with patch.object(Context, "restore", lambda self, y: y):
        yield


@seeded("C5", "mamba2")
def compaction_turns_the_tokens_round():
    true = context._compact

    def turned(valid):
        order, lengths, prefix = true(valid)
        if order is None:
            return order, lengths, prefix
        return order.gather(1, (lengths[:, None] - 1 - torch.arange(order.shape[1])) % order.shape[1]), lengths, prefix

    with patch.object(context, "_compact", turned):
        yield


@seeded("C5", "attention")
def pads_take_positions():
    with patch.object(context, "_after", lambda start, positions, lengths: positions[:, -1] + 1):
        yield


@seeded("C6", "attention")
def the_last_document_is_forgotten():
    true = context._documents

    def documents(ids, lengths, start, segment):
        document, positions, _ = true(ids, lengths, start, segment)
        return document, positions, segment

    with patch.object(context, "_documents", documents):
        yield


@seeded("C6", "attention")
def positions_run_on_over_documents():
    true = context._documents

    def documents(ids, lengths, start, segment):
        document, positions, last = true(ids, lengths, start, segment)
        return document, start[:, None] + torch.arange(positions.shape[1]).expand_as(positions), last

    with patch.object(context, "_documents", documents):
        yield


@seeded("C7", "attention")
def selected_rows_keep_the_old_positions():
    def select(self, rows):
        count = torch.arange(len(rows)) % len(self.lengths)
        return Cursor(self.position[count], self.segment[count], [self.lengths[i] for i in count.tolist()])

    with patch.object(Cursor, "select", select):
        yield


@seeded("C7", "attention")
def emptied_rows_keep_their_positions():
    with patch.object(Cursor, "reset", lambda self, rows: None):
        yield


@seeded("C7", "mamba2")
def emptied_rows_keep_their_state():
    with patch.object(state, "leaves", lambda layers: []):
        yield


@seeded("C10", "attention")
def forks_share_the_clock():
    with patch.object(Cursor, "fork", lambda self: self):
        yield


@seeded("C10", "attention")
def a_full_state_is_overrun():
    with patch.object(context, "_check_capacity", lambda extent, max_length, lengths: None):
        yield


@seeded("C10", "mamba")
def a_spent_state_goes_on():
    with (
        patch.object(ModelState, "check", lambda self: None),
        patch.object(state.LayerState, "check", lambda self, b: None),
    ):
        yield


@seeded("C9", "attention")
def rollback_forgets_to_move_the_clock():
    with patch.object(ModelState, "rollback", lambda self, count: self):
        yield


@seeded("C9", "attention")
def rollback_one_token_short():
    true = ModelState.rollback
    with patch.object(ModelState, "rollback", lambda self, count: true(self, max(0, count - 1))):
        yield


@seeded("C14", "mamba2")
def states_are_overwritten_under_gradients():
    with patch.object(state.LayerState, "in_place", True):
        yield


@seeded("C14", "attention")
def a_graph_loses_its_memory_to_the_next_call():
    """The cache is overwritten as soon as gradients are off, while the call before still needs it."""
    with patch.object(state.LayerState, "in_place", property(lambda self: not torch.is_grad_enabled())):
        yield


@seeded("C18", "attention")
def a_loaded_state_forgets_its_position():
    true = ModelState.save

    def save(self, path):
        self.cursor.position.zero_()
        true(self, path)

    with patch.object(ModelState, "save", save):
        yield


# --------------------------------------------------------------------------------------------------------- whole models
HYBRID = "[mamba2] [attention] [s4]"


@seeded("C5", HYBRID)
def the_model_does_not_put_back_its_outputs():
    with patch.object(Context, "restore", lambda self, y: y):
        yield


@seeded("C2", HYBRID)
def the_model_passes_no_state_to_its_last_layer():
    true = Block.forward

    def forward(self, x, held, ctx):
        y, after = true(self, x, None if held is not None and held.kind == "s4" and x.shape[1] > 1 else held, ctx)
        return y, held if after is None else after

    with patch.object(Block, "forward", forward):
        yield


@seeded("C6", HYBRID)
def the_model_drops_the_documents():
    true = HybridLM.hidden

    def hidden(self, ids, held=None, *, valid=None, segment_ids=None):
        return true(self, ids, held, valid=valid)

    with patch.object(HybridLM, "hidden", hidden):
        yield


@seeded("C17", HYBRID)
def a_block_forgets_its_mlp():
    true = Block.reset_parameters

    def reset_parameters(self, streams):
        mlp, self.mlp = self.mlp, None
        true(self, streams)
        self.mlp = mlp

    with patch.object(Block, "reset_parameters", reset_parameters):
        yield


@seeded("C24", HYBRID)
def the_books_forget_the_head():
    true = ModelCost.forward
    with patch.object(
        ModelCost,
        "forward",
        lambda self, tokens, past=0: true(self, tokens, past) + Flops(matmul=-2.0 * tokens * 32 * 40),
    ):
        yield
