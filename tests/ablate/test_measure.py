"""What is measured: the same numbers whatever the batches, against a plain reading of all samples at once."""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridlm.ablate import measure as measuring
from hybridlm.ablate.measure import HeldOut, better, measure
from hybridlm.compose.build import build
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.data import TaskData
from hybridlm.train.data import TextData

MQAR = {"vocab_size": 32, "length": 16, "pairs": 2}


def task(batch_size, count=11):
    return HeldOut(TaskData("mqar", MQAR, held_out=count, batch_size=batch_size), count, torch.device("cpu"))


def trained_a_bit():
    """A model that is right sometimes."""
    model, data = build(pattern="MA", d_model=32, vocab_size=32, seed=0), TaskData("mqar", MQAR, batch_size=16)
    optimizer, stream = torch.optim.AdamW(model.parameters(), lr=1e-2), iter(data.training_samples(0, 0, 1))
    for _ in range(12):
        batch = next(stream)
        optimizer.zero_grad()
        model(batch["ids"], targets=batch["targets"]).loss.backward()
        optimizer.step()
    return model


def test_accuracy_solved_and_loss_are_what_they_say():
    model, (batch,) = trained_a_bit(), task(11).batches
    with torch.no_grad():
        logits = model.eval()(batch["ids"]).logits
    asked = batch["targets"] != IGNORED
    right = (logits.argmax(-1) == batch["targets"]) & asked
    found = measure(model, task(4))
    assert 0 < found["accuracy"] < 1
    assert found["accuracy"] == pytest.approx(right.sum().item() / asked.sum().item())
    assert found["solved"] == pytest.approx((right == asked).all(dim=1).float().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits[asked], batch["targets"][asked]).item(), rel=1e-5)


def test_a_sample_that_asks_nothing_is_not_solved_and_not_counted():
    model, held_out = trained_a_bit(), task(11)
    found = measure(model, held_out)
    (batch,) = held_out.batches
    rest = {name: torch.cat([tensor, tensor[:4]]) for name, tensor in batch.items()}
    rest["targets"][11:] = IGNORED
    held_out.batches = [rest]
    assert measure(model, held_out) == pytest.approx(found, rel=1e-6)


def test_logits_that_are_no_numbers_answer_nothing():
    """The largest of them would be the first, and so be right where token 0 is asked for."""
    model, held_out = build(pattern="A", d_model=32, vocab_size=32, seed=0), task(11)
    (batch,) = held_out.batches
    batch["targets"] = torch.where(batch["targets"] == IGNORED, IGNORED, 0)
    with torch.no_grad():
        model.final_norm.weight.fill_(math.nan)
    found = measure(model, held_out)
    assert (found["accuracy"], found["solved"]) == (0.0, 0.0)
    assert math.isnan(found["loss"])


@pytest.mark.parametrize("size", [1, 3, 11, 50])
def test_batches_change_nothing(size):
    model = trained_a_bit()
    assert measure(model, task(size)) == pytest.approx(measure(model, task(11)), rel=1e-5)


def test_as_many_samples_as_were_asked_for():
    held = HeldOut(TaskData("mqar", MQAR, held_out=50, batch_size=8), 20, torch.device("cpu"))
    assert [len(batch["ids"]) for batch in held.batches] == [8, 8, 4]


def test_a_long_sample_is_read_in_pieces(monkeypatch):
    model, held_out = trained_a_bit(), task(4)
    whole = measure(model, held_out)
    monkeypatch.setattr(measuring, "CHUNK", 5)
    assert measure(model, held_out) == pytest.approx(whole, rel=1e-5)


def test_numbers_have_a_squared_error():
    batch = {"inputs": torch.randn(3, 5, 2), "targets": torch.randn(3, 5, 1)}
    batch["targets"][:, ::2] = torch.nan
    head, embed = {"type": "regress", "outputs": 1}, {"type": "linear", "channels": 2}
    model = build(pattern="A", d_model=32, embed=embed, head=head, seed=0)
    held = task(4)
    held.batches = [batch]
    with torch.no_grad():
        off = (model(batch["inputs"]).logits - batch["targets"]).square().nanmean().item()
    assert measure(model, held) == {"loss": pytest.approx(off, rel=1e-5)}


def test_text_has_bits_per_byte(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    data = TextData(str(file), context=32, batch_size=4, cache=str(tmp_path))
    data.prepare_data()
    data.setup()
    found = measure(build(pattern="M", d_model=32, vocab_size=256), HeldOut(data, 6, torch.device("cpu"), 1.0))
    assert set(found) == {"loss", "bits_per_byte"}
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))


def test_dropout_is_off():
    model = build(pattern="A", d_model=32, vocab_size=32, dropout=0.5).train()
    assert measure(model, task(4)) == measure(model, task(4))


@pytest.mark.parametrize(
    ("metric", "value", "bar", "there"),
    [
        ("accuracy", 0.99, 0.98, True),
        ("accuracy", 0.97, 0.98, False),
        ("loss", 0.1, 0.2, True),
        ("loss", 0.3, 0.2, False),
        ("loss", math.nan, 0.2, False),
        ("accuracy", math.nan, 0.0, False),
    ],
)
def test_a_bar_is_got_to_from_its_own_side(metric, value, bar, there):
    assert better(metric, value, bar) == there
