"""Scores do not depend on how the text was batched."""

from __future__ import annotations

import math

import pytest
import torch

from hybridlm.train.metrics import Rate, TokenScore, bits_per_byte


def test_score_weighs_tokens_not_batches():
    nll = torch.rand(40, dtype=torch.float64)
    targets = torch.ones(40, dtype=torch.long)
    targets[::3] = -100
    kept = targets != -100
    score = TokenScore()
    for piece in torch.arange(40).split([1, 7, 20, 12]):
        mask = kept[piece]
        mean = nll[piece][mask].mean() if mask.any() else torch.tensor(float("nan"))
        score.update(mean, targets[piece])
    assert score.compute() == pytest.approx(nll[kept].mean().item(), abs=1e-12)


def test_score_counts_past_float32():
    score = TokenScore()
    score.update(torch.tensor(1.0), torch.ones(1, dtype=torch.long))
    score.tokens += 2**24
    score.update(torch.tensor(1.0), torch.ones(1, dtype=torch.long))
    assert score.tokens == 2**24 + 2


def test_bits_per_byte():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2)


def test_rate_leaves_pauses_out(monkeypatch):
    now = 0.0
    monkeypatch.setattr("hybridlm.train.metrics.time.perf_counter", lambda: now)
    rate = Rate(window=3)
    for _ in range(5):
        rate.start()
        now += 2.0
        assert rate.step(100) == 50
    rate.pause()
    now += 1000.0
    rate.start()
    now += 2.0
    assert rate.step(100) == 50
