"""MLPs that read the context, and the journal through which they speak to the model and to training."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hybridlm as hl
from hybridlm.context import Context
from hybridlm.layers.mlp import MLP, PlainConfig
from hybridlm.layers.router import RouterRecord
from hybridlm.registry import mlps

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


class Weigher(MLP):
    """Writes the mean square of its weight as if it were a balance loss, and keeps the context it was given."""

    Config = PlainConfig
    reads_context = True

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        self.ctx = ctx
        if ctx.journal is not None:
            two = torch.tensor([0.75, 0.25])
            ctx.journal.append(RouterRecord(self.up_proj.weight.square().mean(), two, two, two.max()))
        return self.down_proj(self.up_proj(x))


@pytest.fixture(autouse=True)
def weigher():
    mlps.register("weigher")(Weigher)
    yield
    mlps.unregister("weigher")


def make(pattern: str = "A A{mlp: swiglu} - A@x A@x") -> hl.HybridLM:
    return hl.build(pattern=pattern, d_model=32, vocab_size=50, mlp="weigher", seed=0)


def test_there_is_a_journal_only_where_a_loss_is_asked_for():
    model = make()
    assert model(IDS).router == ()
    assert model.blocks[0].mlp.ctx.journal is None
    out = model(IDS, targets=IDS)
    assert [record.layer for record in out.router] == [0, 2, 3, 4]
    assert [replace(record, layer=0) for record in model.blocks[0].mlp.ctx.journal] == [out.router[0]]  # its own alone
    assert out.router[2].balance == out.router[3].balance == model.shared["x"].mlp.up_proj.weight.square().mean()


def test_the_context_tells_an_mlp_which_tokens_are_real():
    model, valid = make(), torch.arange(9).expand(2, 9) > 2
    model(IDS, valid=valid, segment_ids=IDS)
    ctx = model.blocks[0].mlp.ctx
    assert ctx.lengths.tolist() == [6, 6]
    assert ctx.document is not None


def test_balance_losses_are_trained_on_and_never_measured():
    model = make()
    training, measured = model(IDS, targets=IDS), model.eval()(IDS, targets=IDS)
    torch.testing.assert_close(measured.loss, measured.cross_entropy, rtol=0, atol=0)
    assert torch.equal(training.cross_entropy, measured.cross_entropy)
    torch.testing.assert_close(training.loss, measured.loss + sum(record.balance for record in training.router))
    plain = hl.build(pattern="A", d_model=32, vocab_size=50, seed=0)(IDS, targets=IDS)
    assert plain.router == ()
    assert torch.equal(plain.loss, plain.cross_entropy)


def test_gradients_of_balance_losses_survive_activation_checkpointing():
    """What is recomputed in the backward pass writes to a journal that nobody reads any more."""

    def gradients(model: hl.HybridLM) -> list[Tensor]:
        model(IDS, targets=IDS).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    expected, model = gradients(make("A2")), make("A2")
    for block in model.blocks:
        inner = block.forward
        block.forward = lambda *inputs, inner=inner: checkpoint(inner, *inputs, use_reentrant=False)
    out = model(IDS, targets=IDS)
    assert len(out.router) == 2
    model.zero_grad()
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other)
