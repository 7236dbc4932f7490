"""LitHybridLM: what it logs, what it refuses."""

from __future__ import annotations

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.nn.utils import get_total_norm

from hybridlm.errors import CheckpointError, DataError, SpecError
from hybridlm.train.data import IGNORED, TextData
from hybridlm.train.module import LitHybridLM, require_same_spec


def test_training_lowers_the_loss_and_logs_every_measure(make_run):
    run = make_run(max_steps=40, log_every_n_steps=1)
    run.fit()
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert metrics["train_loss"] < 0.8 * math.log(256)
    assert metrics["val_ppl"] == pytest.approx(math.exp(metrics["val_loss"]), rel=1e-5)
    assert metrics["val_bpb"] == pytest.approx(metrics["val_loss"] / math.log(2), rel=1e-5)
    assert metrics["tokens_per_second"] > 0
    assert 0 < metrics["lr"] < 1e-2


def test_validation_is_the_mean_over_every_held_out_token(make_run):
    run = make_run(max_steps=3, limit_val_batches=1.0)
    run.fit()
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    module, total, tokens = run.module.eval(), 0.0, 0
    for batch in run.data.val_dataloader():
        with torch.no_grad():
            logits = module.model(batch["ids"], segment_ids=batch["segment_ids"]).logits.double()
        nll = torch.nn.functional.cross_entropy(logits.mT, batch["targets"], ignore_index=IGNORED, reduction="sum")
        total, tokens = total + nll.item(), tokens + (batch["targets"] != IGNORED).sum().item()
    assert tokens == run.data.bins.held_out.tokens - run.data.bins.held_out.documents
    assert float(run.trainer.callback_metrics["val_loss"]) == pytest.approx(total / tokens, rel=1e-5)


def test_predictions_are_the_loss_of_each_token(make_run):
    run = make_run(max_steps=2)
    run.fit()
    nll = torch.cat(run.trainer.predict(run.module, run.data))
    targets = torch.cat([batch["targets"] for batch in run.data.predict_dataloader()])
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    whole = make_run(limit_val_batches=1.0)
    whole.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert (nll[targets == IGNORED] == 0).all()
    mean = nll[targets != IGNORED].double().mean().item()
    assert mean == pytest.approx(float(whole.trainer.callback_metrics["val_loss"]), rel=1e-5)


def test_bfloat16(make_run):
    run = make_run(max_steps=30, precision="bf16-mixed")
    weights = run.fit()
    assert float(run.trainer.callback_metrics["train_loss"]) < 4.5
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_before_a_fused_step(make_run, precision):
    """In mixed precision Lightning by itself refuses to clip for a fused optimiser."""
    run, norms = make_run(max_steps=3, precision=precision), []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            norms.extend([get_total_norm(gradients).item()] * bool(gradients))

    run.trainer.gradient_clip_val = 0.01
    run.trainer.callbacks.append(Watch())
    run.fit()
    assert run.trainer.optimizers[0].defaults["fused"]
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert norms


def test_a_tokenizer_too_large_for_the_model(make_run, texts, tmp_path):
    from hybridlm.train.tokenize import train_tokenizer

    run = make_run()
    file = train_tokenizer(str(texts), vocab_size=280, output=tmp_path / "tokenizer.json")
    run.data = TextData(str(texts), context=8, batch_size=2, tokenizer=str(file))
    with pytest.raises(DataError, match=r"vocab_size 256; set vocab_size: \d+ there"):
        run.fit()


def test_another_spec_lists_every_difference(make_run, tmp_path, spec):
    first = make_run("first", max_steps=2)
    first.fit()
    other = tmp_path / "other.yaml"
    other.write_text(spec.read_text().replace("window: 8", "window: 4").replace("d_model: 32", "d_model: 48"))
    with pytest.raises(CheckpointError) as error:
        make_run("other", spec=other).fit(first.folder / "checkpoints" / "step-00000002")
    message = str(error.value)
    assert "d_model: 32 in the checkpoint, 48 here" in message
    assert "blocks.W.mixer.window: 8 in the checkpoint, 4 here" in message
    assert "model.embed.weight: (256, 32) in the checkpoint, (256, 48) here" in message


def test_a_checkpoint_from_before_a_setting_existed_goes_on(tmp_path):
    file = tmp_path / "ssm.yaml"
    file.write_text("{d_model: 32, vocab_size: 16, pattern: SmM}")
    module = LitHybridLM(str(file))
    saved = copy.deepcopy(module.model.spec.to_dict())
    for letter, names in {"S": ["time_scale"], "m": ["discretization", "select", "gate"], "M": ["gated_norm"]}.items():
        for name in names:
            del saved["blocks"][letter]["mixer"][name]
    require_same_spec(saved, module)
    saved["blocks"]["S"]["mixer"]["time_scale"] = 2.0
    with pytest.raises(CheckpointError, match=r"blocks.S.mixer.time_scale: 2.0 in the checkpoint, absent here"):
        require_same_spec(saved, module)


def test_dropout_may_change_between_parts_of_a_run(make_run, tmp_path, spec):
    first = make_run("first", max_steps=2)
    first.fit()
    other = tmp_path / "other.yaml"
    other.write_text(spec.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    make_run("other", spec=other, max_steps=4).fit(first.folder / "checkpoints" / "step-00000002")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "model.lr: 0.0"),
        ({"lr": float("nan")}, "model.lr: nan"),
        ({"weight_decay": -1.0}, "model.weight_decay"),
        ({"warmup": -1}, "model.warmup"),
        ({"decay": 0.0}, "model.decay"),
        ({"final_lr": 2.0}, "model.final_lr"),
    ],
)
def test_settings_are_checked(spec, settings, message):
    with pytest.raises(SpecError, match=message):
        LitHybridLM(str(spec), **settings)


def test_steps_must_be_bounded(make_run):
    with pytest.raises(SpecError, match=r"trainer\.max_steps"):
        make_run(max_steps=-1, max_epochs=1).fit()


def test_the_seed_decides_the_weights(spec):
    first, second, third = (LitHybridLM(str(spec), seed=seed).model.embed.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
