"""A peer gets our weights, has as many parameters, and gives our logits: the architectures are the same."""

from __future__ import annotations

import pytest
import torch

import hybridlm as hl
from benchmarks.architecture import Architecture, relative
from benchmarks.peers import require_layers, require_same_size, transformers_peer, transformers_shipped_peer
from hybridlm.ops.backend import found

ARCH = Architecture("(MMMA)1", 64, 16, 16, 97)


@pytest.fixture(scope="module")
def both():
    weights = ARCH.weights("cpu", 0)
    return weights, transformers_peer.build(ARCH, weights, "cpu", torch.float32)


def test_transformers_has_our_logits(both):
    weights, peer = both
    ids = torch.randint(1, 97, (2, 40))
    peer.model.eval()
    truth = ARCH.truth(weights, ids[0])
    with torch.no_grad():
        assert relative(peer.logits(ids)[0], truth) < 5e-6
        assert relative(peer.prefill(ids)[0], truth[-1]) < 5e-6
    assert peer.parameters == ARCH.cost.parameters
    assert peer.label == "CPU path"


def test_transformers_as_it_ships_differs_as_it_says(both):
    """The same logits, a second matrix of the vocabulary, and its own chunks."""
    weights, tied = both
    peer = transformers_shipped_peer.build(ARCH, weights, "cpu", torch.float32)
    peer.model.eval()
    ids = torch.randint(1, 97, (2, 40))
    with torch.no_grad():
        assert relative(peer.logits(ids)[0], ARCH.truth(weights, ids[0])) < 5e-6
    assert peer.parameters == tied.parameters + 97 * 64
    assert peer.notes == ["as it ships: embeddings not tied, chunks of 128"]
    assert tied.notes == ["embeddings tied by hand"]


def test_transformers_trains_on_our_loss(both):
    weights, peer = both
    ids = torch.randint(1, 97, (2, 40))
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    ours = ARCH.ours(weights, "cpu", torch.float32)(ids, targets=targets).loss
    assert peer.loss(ids, targets).item() == pytest.approx(ours.item(), abs=1e-5)


def test_transformers_generates_our_tokens(both):
    weights, peer = both
    ids = torch.randint(1, 97, (2, 40))
    peer.model.eval()
    ours = hl.generate(ARCH.ours(weights, "cpu", torch.float32), ids, max_new_tokens=5)
    assert peer.generate(ids, 5).tolist() == ours.tolist()


def test_slow_kernels_are_seen():
    """transformers marks a function that a package replaced; without packages none is."""
    assert not transformers_peer._replaced(found(transformers_peer.MODULE, "mamba2_chunk_scan"))

    def closure(is_new_implementation):
        return lambda: is_new_implementation

    assert transformers_peer._replaced(closure(True))
    assert not transformers_peer._replaced(closure(False))


def test_other_sizes_and_layers_are_refused():
    with pytest.raises(AssertionError, match="more than 2% apart"):
        require_same_size("x", 103, 100)
    with pytest.raises(NotImplementedError, match="not for s4"):
        require_layers("x", ["mamba2", "s4"])


def test_floor_counts_the_causal_half():
    """Twice the length takes twice the products, and four times those on pairs: half of all pairs is seen."""
    arch = Architecture("A", 64, 16, 16, 97)
    matrices = 2 * (4 * 64 * 64 + 97 * 64)
    assert arch.forward_flops(256) == 256 * matrices + 4 * 64 * 256 * 256 / 2
    assert arch.forward_flops(256, logits=1) == arch.forward_flops(256) - 255 * 2 * 97 * 64
