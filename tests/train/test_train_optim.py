"""Law C19: every parameter in exactly one group, no decay where a zero means something, bounded rates stay bounded."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import hybridlm as hl
from hybridlm.errors import SpecError
from hybridlm.layers.mixer import Mixer
from hybridlm.train.optim import adamw, capped_schedule, parameter_groups, schedule_factor


class Bare(Mixer):
    param_groups = {"A_log": {"weight_decay": 0}, "inner.weight": {"weight_decay": 0, "lr_max": 1e-3}, "D": {}}

    def __init__(self):
        nn.Module.__init__(self)
        self.A_log = nn.Parameter(torch.ones(4, 4))
        self.register_parameter("D", None)
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.norm = nn.LayerNorm(4)
        self.mixer = Bare()
        self.head = nn.Linear(4, 8, bias=False)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_each_parameter_once_and_decay_only_where_it_belongs():
    model = Stack()
    groups = parameter_groups(model, weight_decay=0.1, lr=1e-2)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decayed = {name for name, group in by_name(groups).items() if group["weight_decay"]}
    assert decayed == {"head.weight", "mixer.out.weight"}
    assert {n for n, g in by_name(groups).items() if g["lr_max"] < math.inf} == {"mixer.inner.weight"}


def test_tied_weights_are_embeddings_and_listed_once():
    model = Stack()
    model.head.weight = model.embed.weight
    names = by_name(parameter_groups(model, weight_decay=0.1, lr=1e-2))
    assert names["embed.weight"]["weight_decay"] == 0
    assert "head.weight" not in names


@pytest.mark.parametrize(
    ("declared", "message"),
    [({"gone": {"weight_decay": 0}}, "no parameter of that name"), ({"A_log": {"decay": 0}}, "unknown settings")],
)
def test_a_declaration_that_nobody_could_read_is_refused(monkeypatch, declared, message):
    monkeypatch.setattr(Bare, "param_groups", declared)
    with pytest.raises(SpecError, match=message):
        parameter_groups(Stack(), weight_decay=0.1, lr=1e-2)


def test_a_model_of_every_mixer():
    model = hl.build(pattern="AWSMm", d_model=32, vocab_size=64)
    groups = by_name(parameter_groups(model, weight_decay=0.1, lr=1e-2))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    spared = ("A_log", "norm", "bias", "embed", ".D", "log_dt")
    for name, group in groups.items():
        if any(word in name for word in spared):
            assert group["weight_decay"] == 0, name


def test_lr_max_bounds_the_rate_throughout():
    model = Stack()
    optimizer = adamw(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    factor = partial(schedule_factor, total=50, schedule="cosine", warmup=5, decay=0.2, final=0.0)
    scheduler = capped_schedule(optimizer, factor, 1e-2)
    rates = []
    for _ in range(50):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    bounded = [g["lr_max"] < math.inf for g in optimizer.param_groups]
    assert any(bounded)
    for row in rates:
        free = next(lr for lr, bound in zip(row, bounded, strict=True) if not bound)
        assert all(
            lr == pytest.approx(min(free, 1e-3) if bound else free) for lr, bound in zip(row, bounded, strict=True)
        )
    assert max(map(max, rates)) == pytest.approx(1e-2)


def factors(schedule, total=100, warmup=10, decay=0.2, final=0.1):
    settings = {"total": total, "schedule": schedule, "warmup": warmup, "decay": decay, "final": final}
    return [schedule_factor(step, **settings) for step in range(total + 1)]


def test_cosine_schedule():
    values = factors("cosine")
    assert values[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert values[10] == 1
    assert values[55] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)


def test_wsd_schedule():
    values = factors("wsd")
    assert set(values[10:81]) == {1.0}
    assert values[90] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)


def test_constant_schedule_and_a_warmup_longer_than_the_run():
    assert set(factors("constant")[10:]) == {1.0}
    assert factors("cosine", total=20, warmup=1000)[2] == 1  # at most a tenth of the run
