"""Blocks that are computed again in the backward pass: what else must be as it was the first time."""

import pytest
import torch
from torch import nn

import hybridlm as hl
from hybridlm.compose.compiled import _make_room
from hybridlm.compose.recompute import recomputed
from hybridlm.context import Context
from hybridlm.ops.backend import kernels, preferred, trace, use

IDS = torch.randint(0, 40, (1, 5), generator=torch.Generator().manual_seed(0))


def make(pattern: str) -> hl.HybridLM:
    model = hl.build(pattern=pattern, d_model=32, vocab_size=40, seed=0)
    model.checkpoint_blocks()
    return model


class Asks(nn.Module):
    """A block that notes what `auto` means."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.heard, self.fails = [], fails

    def forward(self, x, state, ctx, aside):
        if self.fails and self.heard:
            raise RuntimeError("the second time")
        self.heard.append(preferred())
        return x.sin(), None, None


@pytest.mark.parametrize("first", ["auto", "reference", "triton"])
@pytest.mark.parametrize("later", ["auto", "reference", "triton"])
def test_the_backend_is_that_of_the_forward_pass(first, later):
    block, x = Asks(), torch.ones(1, 2, 3, requires_grad=True)
    with use(first):
        y = recomputed(block, x, None, Context.of(x), None)[0]
    with use(later):
        y.sum().backward()
        assert preferred() == later
    assert block.heard == [first, first]


def test_what_auto_means_comes_back_after_an_error():
    x = torch.ones(1, 2, 3, requires_grad=True)
    with use("reference"):
        y = recomputed(Asks(fails=True), x, None, Context.of(x), None)[0]
    with pytest.raises(RuntimeError, match="the second time"):
        y.sum().backward()
    assert preferred() == "auto"


@pytest.mark.skipif(kernels("hybridlm.ops.ssd.triton") is None, reason="Triton cannot run here")
def test_a_model_is_computed_again_by_the_same_kernels():
    model = make("M")
    with use("triton"), trace() as first:
        loss = model(IDS, targets=IDS).loss
    with trace() as again:
        loss.backward()
    assert {seen.op: seen.backend for seen in again}["ssd"] == "triton"
    assert again == first[: len(again)]  # but for the final norm and the loss, which are kept


@pytest.mark.deep
@pytest.mark.usefixtures("compiler")
def test_a_whole_model_compiles_with_it():
    _make_room()
    model = make("C")
    found = []
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        model.zero_grad()
        with use("reference"):
            run(IDS, targets=IDS).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
