"""Calls that are recorded look at no number, and say so to those who would."""

import pytest
import torch

from hybridlm.context import Cursor
from hybridlm.errors import StateError
from hybridlm.recording import fresh, recorded, recording
from hybridlm.registry import mixers

X = torch.zeros(2, 3)


def test_only_within_the_block():
    assert not recorded(X)
    with recording(fresh=True):
        assert recorded(X)
        assert fresh()
        with recording():
            assert recorded(X)
            assert not fresh()
        assert fresh()
    assert not recorded(X)
    with pytest.raises(ZeroDivisionError), recording():
        _ = 1 / 0
    assert not recorded(X)


@pytest.mark.parametrize("empty", [True, False])
def test_a_cursor_counts_on_the_device_alone(empty):
    cursor = Cursor.zeros(2)
    if not empty:
        cursor.open(X, max_length=8)
    with recording(fresh=empty):
        ctx = cursor.open(X, torch.tensor([[True, True, True], [True, False, False]]), max_length=8)
    assert (ctx.past, ctx.extent) == ((0, 3) if empty else (8, 8))
    assert cursor.known is None
    assert cursor.over == [False, False]
    assert cursor.position.tolist() == ([3, 1] if empty else [6, 4])
    assert cursor.lengths == cursor.position.tolist()
    assert cursor.count(2, 8) == [length + 2 for length in cursor.lengths]
    with pytest.raises(StateError, match="row 1 would hold"):
        cursor.count([0, 8], 8)


def test_documents_may_have_begun_over_others():
    cursor = Cursor.zeros(2)
    with recording():
        cursor.open(X, segment_ids=torch.tensor([[0, 0, 1], [0, 0, 0]]), max_length=8)
    assert cursor.over == [True, True]


@torch.no_grad()
@pytest.mark.parametrize("name", mixers.names())
def test_a_mixer_on_its_own_gives_the_same_recorded(name):
    """Though its state may know of no greatest length."""
    kind = mixers.get(name)
    sizes = {"window": 6} if name == "sliding_window" else {}
    mixer, x = kind(kind.Config(**sizes), 8).double(), torch.randn(2, 12, 8, dtype=torch.float64)

    def read(each: int) -> torch.Tensor:
        state, ys = mixer.init_state(2, 64, dtype=torch.float64), []
        for part in x.split(each, dim=1):
            y, state = mixer(part, state)
            ys.append(y)
        return torch.cat(ys, dim=1)

    expected = read(12)
    with recording():
        for each in (1, 4):
            torch.testing.assert_close(read(each), expected)
