"""The demonstration's contestants, and the whole of it in a few seconds."""

from __future__ import annotations

import gzip
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from hybridlm.train import demo
from hybridlm.train.data import IGNORED, TextData
from hybridlm.train.tokens import TokenBin


@pytest.fixture
def data(texts):
    data = TextData(str(texts), context=16, batch_size=2, held_out=0.2)
    data.prepare_data()
    data.setup()
    return data


def test_bigram_is_add_one_counting(data):
    batches = list(data.val_dataloader())
    text = data.bins.train.read().tolist()
    pairs, firsts = {}, {}
    for a, b in pairwise(text):
        pairs[a, b], firsts[a] = pairs.get((a, b), 0) + 1, firsts.get(a, 0) + 1
    bits = [
        -math.log2((1 + pairs.get((a, b), 0)) / (256 + firsts.get(a, 0)))
        for batch in batches
        for a, b in zip(batch["ids"].flatten().tolist(), batch["targets"].flatten().tolist(), strict=True)
        if b != IGNORED
    ]
    assert demo.bigram_bits(data.bins.train, batches) == pytest.approx(sum(bits) / len(bits))


def test_gzip_reads_the_whole_split(tmp_path):
    text = b"abc" * 500
    np.frombuffer(text, np.uint8).astype(np.uint16).tofile(tmp_path / "held_out.bin")
    held = TokenBin(folder=tmp_path, split="held_out", dtype="uint16", tokens=1500, documents=1, bytes=1500)
    assert demo.gzip_bits(held) == 8 * len(gzip.compress(text)) / 1500


def test_the_model_is_scored_by_token(data, spec):
    import hybridlm as hl

    model = hl.build(spec, seed=0).eval()
    batches = list(data.val_dataloader())
    logits = torch.cat([model(b["ids"], segment_ids=b["segment_ids"]).logits.detach() for b in batches])
    targets = torch.cat([b["targets"] for b in batches])
    nll = torch.nn.functional.cross_entropy(logits.mT, targets, ignore_index=IGNORED)
    assert demo.model_bits(model, batches) == pytest.approx(float(nll) / math.log(2), rel=1e-5)


@pytest.mark.parametrize(("minutes", "clock"), [(4, "00:00:04:24"), (0.01, "00:00:00:05"), (90, "00:01:39:00")])
def test_the_brake(tmp_path, minutes, clock):
    command = demo.training_command(tmp_path, tmp_path, 100, minutes)
    assert command[command.index("--trainer.max_time") + 1] == clock


def test_the_whole_demonstration(tmp_path, monkeypatch, capsys):
    """On the standard library, as shipped, with ten steps; the numbers mean nothing yet but all are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDLM_CACHE", str(tmp_path / "cache"))
    for name, size in {"SCORED": 4, "CONTEXT": 32, "BATCH": 2}.items():
        monkeypatch.setattr(demo, name, size)
    assert demo.main(["--minutes", "0.01", "--prompt", "import "]) == 0
    run = tmp_path / "runs" / "demo" / "0"
    bits = json.loads((run / "results.json").read_text())["bits_per_byte"]
    assert 1.5 < bits["gzip"] < 2.5
    assert 3 < bits["bigram model"] < 4
    assert 3 < bits["this hybrid"] < 9
    assert (run / "loss.png").stat().st_size > 5000
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "import " in out
