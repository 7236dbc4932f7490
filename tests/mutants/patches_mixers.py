"""Bugs seeded in the registered mixers."""

from unittest.mock import patch

import torch
from seeds import patched

from hybridlm.context import Context
from hybridlm.layers import attention, heads, mamba, mamba2, s4, short_conv, sliding_window


def without(module, op, **missing):
    """Patch an op of a mixer's module so that it does not get some of its arguments."""
    true = getattr(module, op)
    return patch.object(module, op, lambda *args, **options: true(*args, **(options | missing)))


# ----------------------------------------------------------------------------------------------------------- attention
@patched("C8", "attention")
def reads_the_slot_after_the_last():
    def attend_cache(self, q, held, ctx):
        slots = torch.arange(ctx.extent + 1)
        k, v = (tensor[:, : ctx.extent + 1].to(q.dtype) for tensor in (held.k, held.v))
        return attention.attention(q, k, v, mask=slots <= ctx.positions[:, :, None] + 1)

    with patch.object(attention.Attention, "attend_cache", attend_cache):
        yield


@patched("C8", "attention")
def pads_are_written_to_the_cache():
    with patch.object(attention, "last_document", lambda ctx: None):
        yield


@patched("C2", "attention")
def rotary_starts_anew_in_every_call():
    true = heads.Heads.project
    with patch.object(heads.Heads, "project", lambda self, x, positions: true(self, x, positions - positions[:, :1])):
        yield


@patched("C1", "attention")
def keys_of_other_heads_in_the_cache():
    def attend_cache(self, q, held, ctx):
        k, v = (tensor[:, : ctx.extent].to(q.dtype).roll(1, 2) for tensor in (held.k, held.v))
        return attention.attention(q, k, v, mask=torch.arange(ctx.extent) <= ctx.positions[:, :, None])

    with patch.object(attention.Attention, "attend_cache", attend_cache):
        yield


@patched("C6", "attention")
def documents_see_one_another():
    def causal(document):
        t = document.shape[1]
        return torch.ones(len(document), t, t, dtype=torch.bool).tril()

    with patch.object(heads, "causal_in_document", causal):
        yield


@patched("C6", "attention")
def every_document_sees_the_cache():
    true = attention.Attention.attend_both

    def attend_both(self, q, k, v, held, ctx):
        first = ctx.document == ctx.document
        blind = Context(ctx.positions, ctx.lengths, ctx.valid, ctx.document * ~first, ctx.past, ctx.extent)
        return true(self, q, k, v, held, blind)

    with patch.object(attention.Attention, "attend_both", attend_both):
        yield


@patched("C1", "sliding_window")
def window_one_token_too_wide():
    true = sliding_window.window_attention

    def wider(q, k, v, *, size, **options):
        return true(q, k, v, size=size + 1, **options)

    with patch.object(sliding_window, "window_attention", wider):
        yield


@patched("C2", "sliding_window")
def ring_written_from_its_beginning_in_every_call():
    true = sliding_window.write_slots

    def write(caches, new, slots, keep, **options):
        return true(caches, new, torch.arange(slots.shape[1]).expand_as(slots) % caches[0].shape[1], keep, **options)

    with patch.object(sliding_window, "write_slots", write):
        yield


@patched("C5", "sliding_window")
def pads_take_slots_of_the_ring():
    with patch.object(sliding_window, "last_document", lambda ctx: None):
        yield


@patched("C9", "sliding_window")
def ring_claims_to_roll_back():
    with patch.object(sliding_window.RingState, "check_rollback", lambda self, count: None):
        yield


# -------------------------------------------------------------------------------------------------- state space layers
@patched("C5", "mamba")
def pads_take_steps():
    with patch.object(Context, "keep_valid", lambda self, x: x):
        yield


@patched("C5", "mamba2")
def conv_state_from_pads():
    with without(short_conv, "causal_conv1d", lengths=None):
        yield


@patched("C6", "mamba")
def conv_ignores_documents():
    with without(short_conv, "causal_conv1d", document=None):
        yield


@patched("C6", "mamba")
def scan_ignores_documents():
    with without(mamba, "selective_scan", document=None):
        yield


@patched("C6", "mamba2")
def ssd_ignores_documents():
    with without(mamba2, "ssd", document=None):
        yield


@patched("C2", "mamba2")
def ssd_starts_from_zero_on_chunks():
    true = mamba2.ssd

    def forgetful(x, *args, state=None, **options):
        return true(x, *args, state=state if x.shape[1] == 1 or state is None else state * 0, **options)

    with patch.object(mamba2, "ssd", forgetful):
        yield


@patched("C14", "mamba")
def gradient_stops_at_the_state():
    true = mamba.selective_scan

    def cut(*args, state=None, **options):
        return true(*args, state=None if state is None else state.detach(), **options)

    with patch.object(mamba, "selective_scan", cut):
        yield


@patched("C5", "s4")
def s4_takes_its_state_after_the_pads():
    with without(s4, "s4_scan", lengths=None):
        yield


@patched("C6", "s4")
def s4_ignores_documents():
    with without(s4, "s4_scan", document=None):
        yield
