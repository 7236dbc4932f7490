"""head: recover: every answer of a row comes from its last vector and a position, and from nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.errors import DataError, UnsupportedError
from hybridlm.layers.recover import with_places
from hybridlm.tasks.data import TaskData
from hybridlm.train.optim import parameter_groups

HEAD = {"type": "recover", "classes": 9}
SPEC = {"pattern": "S A", "d_model": 32, "vocab_size": 9, "head": HEAD}


def make(**changes) -> hl.HybridLM:
    return hl.build(**(SPEC | {"seed": 0} | changes)).eval()


def tokens(rows: int = 3, t: int = 11) -> torch.Tensor:
    return torch.randint(9, (rows, t), generator=torch.Generator().manual_seed(1))


def decoded(head, x: torch.Tensor, place: int, norm) -> torch.Tensor:
    """Logits of one vector at one position, written out."""
    d = len(x)
    half = (d + 1) // 2
    falls = [10_000 ** (-k / (half - 1)) for k in range(half)]
    wave = [math.sin(place * w) for w in falls] + [math.cos(place * w) for w in falls]
    z = x + torch.tensor(wave[:d], dtype=x.dtype)
    for i in range(2):
        z = F.linear(norm(z, head.norms[i]), head.hidden[i].weight, head.hidden[i].bias)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return F.linear(norm(z, head.norms[2]), head.out.weight, head.out.bias)


def rms(z, norm):
    return z / (z.square().mean() + 1e-5).sqrt() * norm.weight


def layer(z, norm):
    return (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize(("norm", "oracle"), [("rmsnorm", rms), ("layernorm", layer)])
@pytest.mark.parametrize("d_model", [32, 33])
@torch.no_grad()
def test_answers_are_the_decoder_of_the_last_vector(norm, oracle, d_model):
    model = make(norm=norm, pattern="r", d_model=d_model).double()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    ids = tokens()
    logits, last = model(ids).logits, model.hidden(ids)[0][:, -1]
    assert logits.shape == (3, 11, 9)
    for row in range(3):
        for place in (0, 1, 10):
            torch.testing.assert_close(logits[row, place], decoded(model.head, last[row], place, oracle))


def test_no_answer_sees_what_the_last_vector_does_not():
    """A window of 2 ends at the last two tokens: what stands before them changes no answer at all."""
    model = make(pattern="W{window: 2}")
    ids = tokens()
    other = ids.clone()
    other[:, :-2] = (other[:, :-2] + 1) % 9
    assert torch.equal(model(ids).logits, model(other).logits)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 9
    assert (model(changed).logits != model(ids).logits).flatten(1).any(dim=1).all()


def test_the_loss_is_the_cross_entropy_of_what_is_asked():
    model, ids = make(), tokens()
    targets = ids.masked_fill(torch.arange(11) % 3 == 0, -100)
    out = model(ids, targets=targets)
    torch.testing.assert_close(out.loss, F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()))
    assert out.loss == out.cross_entropy
    assert model(ids, targets=torch.full_like(ids, -100)).loss == 0


@pytest.mark.parametrize("left", [True, False])
def test_pads_change_no_answer(left):
    model, ids = make(), tokens()
    steps = torch.arange(11)
    valid = torch.stack([steps >= 11 - n if left else steps < n for n in (11, 4, 1)])
    answers = model(ids, valid=valid).logits
    for row, real in enumerate(valid):
        torch.testing.assert_close(answers[row, real], model(ids[row : row + 1, real]).logits[0], rtol=1e-4, atol=1e-5)
    losses = [model(ids[r : r + 1, v], targets=ids[r : r + 1, v]).loss * v.sum() for r, v in enumerate(valid)]
    torch.testing.assert_close(model(ids, valid=valid, targets=ids).loss, sum(losses) / valid.sum())


def test_gradients_reach_every_parameter():
    model = make().train()
    model(tokens(), targets=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())
    groups = parameter_groups(model, weight_decay=0.1, lr=1e-3)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"] if "head" in name}
    assert decayed == {"head.hidden.0.weight", "head.hidden.1.weight", "head.out.weight"}


def test_what_it_cannot_do_is_refused():
    model, ids = make(), tokens()
    with pytest.raises(UnsupportedError, match=r"segment_ids: head is recover, .* give each row whole"):
        model(ids, segment_ids=torch.zeros_like(ids))
    with pytest.raises(UnsupportedError, match="state: head is recover"):
        model(ids, state=model.init_state(3, 16))
    with pytest.raises(hl.SpecError, match=r"targets: shape \(3,\); head recover takes"):
        model(ids, targets=ids[:, 0])
    with pytest.raises(hl.SpecError, match="targets: 17 is no class; there are 0 to 8"):
        model(ids, targets=ids + 9)
    for wrong in ({"classes": 1}, {"classes": 9, "pool": "mean"}, {}):
        with pytest.raises(hl.SpecError, match="head"):
            make(head={"type": "recover", **wrong})


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_cost_is_what_is_there_and_what_is_done(norm):
    model = make(norm=norm)
    cost = model_cost(model.spec)
    assert cost.head.parameters == sum(p.numel() for p in model.head.parameters())
    with FlopCounterMode(display=False) as counter:
        model.head(torch.randn(11, 32))
    assert cost.head.forward(11, 0).total == counter.get_total_flops()


def test_it_is_written_built_and_saved_like_any_model(tmp_path):
    model, ids = make(), tokens()
    assert model.spec.to_dict()["head"] == HEAD
    hl.save(model, tmp_path / "saved")
    assert torch.equal(hl.load(tmp_path / "saved")(ids).logits, model(ids).logits)
    late = hl.build(**SPEC, device="meta").to_empty(device="cpu")
    late.init_weights(0)
    assert torch.equal(late.eval()(ids).logits, model(ids).logits)


def test_positions_are_all_different():
    places = with_places(torch.zeros(1, 64), torch.arange(1024)[None])[0]
    apart = torch.cdist(places, places) + 9 * torch.eye(1024)
    assert apart.min() > 0.3


# --------------------------------------------------------------------------------------------------------- compression
def test_compression_is_trained_with_it_and_with_nothing_else():
    data = TaskData("compression", {"vocab_size": 9, "seq_len": 8})
    data.require(make().spec, "small.yaml")
    text = hl.ModelSpec(d_model=32, vocab_size=9, pattern="A")
    with pytest.raises(
        DataError, match=r"compression asks tokens of the last vector: .* head: {type: recover, classes"
    ):
        data.require(text, "text.yaml")
    with pytest.raises(DataError, match="parity asks tokens at some positions: it needs embed: tokens and head: lm"):
        TaskData("parity").require(make().spec, "small.yaml")
    with pytest.raises(DataError, match=r"head\.classes: 9, and compression has ids up to 15"):
        TaskData("compression").require(make(vocab_size=16).spec, "small.yaml")


@pytest.mark.deep
def test_compression_is_learned():
    """Four tokens of three kinds and the mark, by two layers of attention."""
    data = TaskData("compression", {"vocab_size": 4, "seq_len": 5}, batch_size=32)
    model = make(pattern="AA", vocab_size=4, head={"type": "recover", "classes": 4}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for batch, _ in zip(data.train_dataloader(), range(400), strict=False):
        optimizer.zero_grad()
        model(batch["ids"], targets=batch["targets"]).loss.backward()
        optimizer.step()
    held = data.samples.batch(1, range(100))
    right = model.eval()(held["ids"]).logits.argmax(dim=-1) == held["targets"]
    assert data.task.guess() < 0.5
    assert right.float().mean() > 0.95
