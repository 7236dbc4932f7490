"""What generate makes of an export as remote code, and its cache: it grows, copies, selects, and forgets or refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from remote_models import tokens

import hybridlm as hl
from hybridlm.export.proof import LIMIT, worst


def test_greedy_tokens_are_ours(pair):
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.int64)
    mask[0, :3] = 0
    found = pair.theirs.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    wanted = hl.generate(pair.ours, ids, 12, valid=mask.bool())
    assert torch.equal(found[:, 8:], wanted[:, 8:])


def test_beams_with_a_cache_are_those_without(some):
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.int64)
    mask[1, :5] = 0
    how = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with_cache = some.theirs.generate(ids, **how)
    assert torch.equal(with_cache, some.theirs.generate(ids, use_cache=False, **how))
    greedy = some.theirs.generate(ids, **{**how, "num_beams": 1})
    assert not torch.equal(with_cache, greedy)  # else the beams were never reordered


def test_a_conversation_goes_on_from_its_cache(forms):
    ids = tokens(1, 6)
    first = forms.theirs.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, tokens(1, 4, seed=1)], dim=1)
    again = forms.theirs.generate(longer, past_key_values=first.past_key_values, max_new_tokens=5, do_sample=False)
    assert torch.equal(again, forms.theirs.generate(longer, max_new_tokens=5, do_sample=False))


def test_a_cache_grows_copies_selects_and_empties(pair):
    ids = tokens(2, 40)
    with torch.no_grad():
        wanted = pair.theirs(ids, use_cache=False).logits
        cache = pair.theirs(ids[:, :3]).past_key_values
        twin, swapped = copy.deepcopy(cache), copy.deepcopy(cache)
        for t in range(3, 40):
            out = pair.theirs(ids[:, t : t + 1], past_key_values=cache)
        assert worst(out.logits[:, -1], wanted[:, -1]) <= LIMIT
        assert worst(pair.theirs(ids[:, 3:], past_key_values=twin).logits, wanted[:, 3:]) <= LIMIT
        swapped.reorder_cache(torch.tensor([1, 0]))
        assert worst(pair.theirs(ids[[1, 0], 3:], past_key_values=swapped).logits, wanted[[1, 0], 3:]) <= LIMIT
        twin.reset()
        twin.batch_repeat_interleave(2)
        assert worst(pair.theirs(ids[:, :3], past_key_values=twin).logits, wanted[:, :3]) <= LIMIT
        twin.batch_repeat_interleave(2)
        twin.batch_select_indices(torch.tensor([3]))
        assert worst(pair.theirs(ids[1:, 3:], past_key_values=twin).logits, wanted[1:, 3:]) <= LIMIT


def test_a_cache_of_inference_mode_goes_on_outside(forms):
    ids = tokens(2, 20)
    with torch.inference_mode():
        cache = forms.theirs(ids[:, :3]).past_key_values
        forms.theirs(ids[:, 3:12], past_key_values=cache)
    with torch.no_grad():
        found = forms.theirs(ids[:, 12:], past_key_values=cache).logits
        assert worst(found, forms.ours(ids).logits[:, 12:]) <= LIMIT


def test_attention_forgets_exactly_and_helps_to_assist(attention):
    ids = tokens(1, 20)
    with torch.no_grad():
        cache = attention.theirs(ids[:, :12]).past_key_values
        cache.crop(-4)
        again = attention.theirs(ids[:, 8:], past_key_values=cache).logits
        assert worst(again, attention.ours(ids).logits[:, 8:]) <= LIMIT
    how = {"max_new_tokens": 8, "do_sample": False}
    plain = attention.theirs.generate(ids, **how)
    assert torch.equal(attention.theirs.generate(ids, prompt_lookup_num_tokens=3, **how), plain)


def test_what_folds_its_past_does_not_forget(forms, attention):
    ids = tokens(1, 8)
    with torch.no_grad():
        cache = forms.theirs(ids).past_key_values
        padded = attention.theirs(ids, attention_mask=(ids >= 0).long().index_fill(1, torch.tensor([2]), 0))
    with pytest.raises(NotImplementedError, match="cannot forget 2 tokens"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(2)
    with pytest.raises(ValueError, match="only the last"):
        padded.past_key_values.crop(-2)
    with pytest.raises(ValueError, match="stateful"):
        forms.theirs.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=4)
    with pytest.raises(ValueError, match="a cache of its own"):
        forms.theirs.generate(ids, cache_implementation="static", max_new_tokens=4)
