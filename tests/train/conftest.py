"""A model, a text and a trainer small enough that a run takes a second."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from hybridlm.train.callbacks import NonFiniteGuard, RandomState, RunCheckpoint
from hybridlm.train.checkpoint import SafeCheckpointIO
from hybridlm.train.console import quieten
from hybridlm.train.data import TextData
from hybridlm.train.module import LitHybridLM
from hybridlm.train.progress import LossCurve, Throughput, TrainingBar

SPEC = """\
d_model: 32
vocab_size: 256
pattern: "WA"
blocks:
  W: {mixer: {type: sliding_window, window: 8, heads: 2, kv_heads: 2}}
  A: {mixer: {type: attention, heads: 2, kv_heads: 1}}
dropout: 0.1
"""


@pytest.fixture
def spec(tmp_path):
    """Path of a model's YAML file. It has dropout, so that random state matters."""
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder of 30 documents; the token cache is the test's own."""
    monkeypatch.setenv("HYBRIDLM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"{i}: the quick brown fox jumps over the lazy dog\n" * 4)
    return folder


class Run:
    """A run as the command line sets it up, but without its command line."""

    def __init__(self, spec: Path, texts: Path, folder: Path, **trainer):
        self.folder = folder
        self.module = LitHybridLM(str(spec), lr=1e-2, warmup=2)
        self.data = TextData(str(texts), context=16, batch_size=2, held_out=0.2)
        self.checkpoint = RunCheckpoint(every=trainer.pop("every", 10), keep=trainer.pop("keep", 2))
        extra = trainer.pop("callbacks", [])
        ours = [self.checkpoint, TrainingBar(), Throughput(), LossCurve(), RandomState(), NonFiniteGuard()]
        defaults = {"max_steps": 20, "val_check_interval": 5, "limit_val_batches": 2, "log_every_n_steps": 1}
        quieten()
        self.trainer = pl.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            plugins=[SafeCheckpointIO()],
            callbacks=[*extra, *ours],
            logger=trainer.pop("logger", False),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
            enable_model_summary=False,
            **{**defaults, **trainer},
        )

    def fit(self, ckpt_path=None) -> dict[str, torch.Tensor]:
        """Train; the weights."""
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True)
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}


@pytest.fixture
def make_run(spec, texts, tmp_path):
    """make_run("name", **trainer settings) -> Run in a folder of that name."""
    return lambda name="run", **trainer: Run(trainer.pop("spec", spec), texts, tmp_path / name, **trainer)
