"""Padding, documents and the clock: what the door of a model works out once for every layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.context import Context, Cursor
from hybridlm.errors import StateError


def rows(draw_from: list[list[int]]) -> torch.Tensor:
    return torch.tensor(draw_from)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_align_puts_valid_tokens_first_in_order_and_restore_puts_them_back(mask):
    valid = torch.tensor(mask)
    x = torch.arange(valid.numel(), dtype=torch.float64).reshape(*valid.shape, 1) + 1
    x = x.masked_fill(~valid[..., None], torch.nan)
    ctx = Context.of(x, valid)
    aligned = ctx.align(x)
    for before, row, keep, length in zip(x, aligned, valid, ctx.lengths, strict=True):
        assert torch.equal(row[:length], before[keep])
        assert (row[length:] == 0).all()
    back = ctx.restore(aligned)
    assert torch.equal(back[valid], x[valid])
    assert (back[~valid] == 0).all()


def test_without_valid_nothing_moves():
    x = torch.randn(2, 5, 3)
    ctx = Context.of(x)
    assert ctx.align(x) is x
    assert ctx.restore(x) is x
    assert ctx.positions.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_positions_count_valid_tokens_over_calls():
    cursor = Cursor.zeros(2)
    valid = torch.tensor([[True, False, True, True], [False, False, True, False]])
    ctx = cursor.open(torch.zeros(2, 4), valid)
    assert ctx.positions[0, :3].tolist() == [0, 1, 2]
    assert ctx.positions[1, :1].tolist() == [0]
    assert (cursor.position.tolist(), cursor.lengths, ctx.extent) == ([3, 1], [3, 1], 3)
    ctx = cursor.open(torch.zeros(2, 2))
    assert ctx.positions.tolist() == [[3, 4], [1, 2]]
    assert (ctx.past, ctx.extent, cursor.position.tolist()) == (3, 5, [5, 3])


def test_documents_are_runs_of_equal_ids_numbered_from_the_state():
    cursor = Cursor.zeros(3)
    ids = rows([[0, 0, 7, 7], [3, 3, 3, 3], [0, 1, 0, 1]])
    ctx = cursor.open(ids, None, ids)
    assert ctx.document.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 2, 3]]
    assert ctx.positions.tolist() == [[0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert cursor.position.tolist() == [2, 4, 1]
    ctx = cursor.open(ids[:, :2], None, rows([[7, 8], [3, 3], [2, 2]]))
    assert ctx.document.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert ctx.positions.tolist() == [[2, 0], [4, 5], [0, 1]]
    ctx = cursor.open(ids[:, :1])
    assert ctx.document is None
    assert ctx.positions.tolist() == [[1], [6], [2]]


def test_pads_belong_to_the_last_document_and_begin_none():
    cursor = Cursor.zeros(2)
    ids = rows([[9, 5, 9, 6], [9, 9, 9, 9]])
    valid = torch.tensor([[False, True, False, True], [False] * 4])
    ctx = cursor.open(ids, valid, ids)
    assert ctx.document.tolist() == [[1, 2, 2, 2], [0, 0, 0, 0]]
    assert cursor.segment.tolist() == [6, 0]
    assert cursor.position.tolist() == [1, 0]


def test_a_full_state_refuses_before_anything_moves():
    cursor = Cursor.zeros(2)
    cursor.open(torch.zeros(2, 3), max_length=4)
    before = cursor.fork()
    with pytest.raises(StateError, match=r"row 0 would hold 5 tokens, and max_length is 4"):
        cursor.open(torch.zeros(2, 2), max_length=4)
    assert torch.equal(cursor.position, before.position)
    assert cursor.lengths == before.lengths


def test_capacity_counts_the_tokens_of_each_document_apart():
    cursor = Cursor.zeros(1)
    ids = rows([[0, 0, 0, 1, 1, 1]])
    cursor.open(ids, None, ids, max_length=3)
    assert cursor.lengths == [3]
    before = cursor.fork()
    with pytest.raises(StateError, match="would hold 5 tokens"):
        cursor.open(rows([[1, 1, 2]]), None, rows([[1, 1, 2]]), max_length=3)
    assert (cursor.over, cursor.lengths) == (before.over, before.lengths)
    valid = torch.tensor([[False] * 5 + [True]])
    with pytest.raises(StateError):
        cursor.open(ids, valid, max_length=3)


def test_fork_select_and_reset_share_nothing():
    cursor = Cursor.zeros(3)
    cursor.open(torch.zeros(3, 2))
    fork = cursor.fork()
    picked = cursor.select(torch.tensor([2, 2]))
    cursor.reset(torch.tensor([True, False, False]))
    assert cursor.lengths == [0, 2, 2]
    assert cursor.position.tolist() == [0, 2, 2]
    assert fork.position.tolist() == [2, 2, 2]
    assert picked.position.tolist() == picked.lengths == [2, 2]


@pytest.mark.parametrize("segments", [False, True])
def test_the_clock_moves_in_place_only_where_gradients_are_off(segments):
    """With gradients a compiled call may keep it for the backward pass; and the caller's ids are never written."""
    cursor, x = Cursor.zeros(2), torch.zeros(2, 3, 4)
    ids = torch.tensor([[0, 0, 1], [0, 2, 2]]) if segments else None
    before, given = (cursor.position, cursor.segment), None if ids is None else ids.clone()
    cursor.open(x, segment_ids=ids)
    assert not any(clock.any() for clock in before)
    for mode in (torch.no_grad, torch.inference_mode):
        clocks = (cursor.position, cursor.segment)
        with mode():
            cursor.open(x, segment_ids=None if ids is None else ids + 5)
        assert clocks[0] is cursor.position
        assert clocks[1] is cursor.segment
    assert cursor.position.tolist() == ([1, 2] if segments else [9, 9])
    assert ids is None or torch.equal(ids, given)
