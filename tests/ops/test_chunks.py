"""Folding time into chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.ops.chunks import fold, pieces


@given(st.integers(1, 5000), st.integers(1, 300))
def test_as_many_chunks_as_tokens_fill(t, size):
    assert pieces(t, size) == -(-t // size)


@given(st.integers(1, 40), st.integers(1, 12))
def test_folded_tokens_stand_in_their_order_and_zeros_fill_the_last_chunk(t, size):
    v = torch.arange(1.0, 2 * t * 3 + 1).reshape(2, t, 3)
    folded = fold(v, size).flatten(1, 2)
    assert torch.equal(folded[:, :t], v)
    assert folded.shape[1] % size == 0
    assert folded.shape[1] - t < size
    assert not folded[:, t:].any()


@pytest.mark.parametrize("size", [16, "a length's own"])
def test_lengths_of_as_many_chunks_are_compiled_once_and_take_no_remainder(size):
    """A remainder of a length, in the size of every tensor after it, takes torch.compile's algebra minutes."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    folded = torch.compile(
        lambda v: fold(v, min(64, v.shape[1]) if size != 16 else 16) * 2, backend=keep, fullgraph=True, dynamic=True
    )
    for t in (35, 41, 46):
        v = torch.randn(2, t, 3)
        assert torch.equal(folded(v), fold(v, 16 if size == 16 else t) * 2)
    assert len(graphs) == 1
    found = [node.meta["example_value"] for node in graphs[0].graph.nodes if "example_value" in node.meta]
    sizes = [str(value.shape) for value in found if isinstance(value, torch.Tensor)]
    assert sizes
    assert not any("Mod" in size or "//" in size or "%" in size for size in sizes), sizes
