"""Writing to a cache: what is kept lands in its slot, nothing else does, and gradients go where the numbers went."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.ops.slots import write_slots


def expected(cache, new, slots, keep):
    """Token by token."""
    cache = cache.clone()
    for row in range(len(cache)):
        for step in range(new.shape[1]):
            if keep[row, step]:
                cache[row, slots[row, step]] = new[row, step]
    return cache


@st.composite
def calls(draw):
    """Rows that keep a run of their tokens, whose slots go round; the others' slots may lie behind the end."""
    b, t, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 5, 9])), draw(st.sampled_from([3, 9]))
    keep, slots = torch.zeros(b, t, dtype=torch.bool), torch.zeros(b, t, dtype=torch.int64)
    for row in range(b):
        first = draw(st.integers(0, t))
        last = draw(st.integers(first, min(t, first + size)))
        keep[row, first:last] = True
        positions = draw(st.integers(0, 20)) + torch.arange(t)
        slots[row] = torch.where(keep[row], positions % size, positions)
    return size, keep, slots


def pair(keep, size, dtype=torch.float32, **how):
    """Two caches of unlike widths, and what is new; garbage where nothing is kept."""
    generator, caches, new = torch.Generator().manual_seed(0), [], []
    for width in ((2, 3), (5,)):
        caches.append(torch.randn(len(keep), size, *width, generator=generator, dtype=dtype))
        new.append(torch.randn(*keep.shape, *width, generator=generator, dtype=dtype))
        if not how:
            new[-1][~keep] = torch.nan
    return tuple(x.requires_grad_(**how) if how else x for x in caches), tuple(new)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@given(calls())
def test_kept_tokens_land_in_their_slots(backend, call):
    size, keep, slots = call
    caches, new = pair(keep, size)
    wanted = [expected(*one, slots, keep) for one in zip(caches, new, strict=True)]
    if backend == "reference":
        before = [cache.clone() for cache in caches]
        found = write_slots(caches, new, slots, keep, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(caches, before, strict=True))
    found = write_slots(caches, new, slots, keep, in_place=True, backend=backend)
    assert all(a is b for a, b in zip(found, caches, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("tokens", [1, 4])
def test_gradients_go_where_numbers_went(tokens):
    keep = torch.tensor([[True, True, False, False], [False, False, False, False]])[:, :tokens]
    slots = torch.tensor([[2, 3, 4, 5], [0, 1, 2, 3]])[:, :tokens]
    caches, new = pair(keep, 5, torch.float64, requires_grad=True)
    new = tuple(x.requires_grad_() for x in new)
    weights = [torch.randn_like(cache) for cache in caches]

    def gradients(written):
        total = sum((one * weight).sum() for one, weight in zip(written, weights, strict=True))
        return torch.autograd.grad(total, (*caches, *new))

    wanted = gradients([expected(*one, slots, keep) for one in zip(caches, new, strict=True)])
    for a, b in zip(gradients(write_slots(caches, new, slots, keep)), wanted, strict=True):
        assert torch.equal(a, b)
