"""Every family against random models: exported, opened by transformers, compared, and read back; or refused."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError
from hybridlm.export.choice import choose
from hybridlm.export.family import FAMILIES, SOURCES, family, source
from hybridlm.export.lift import lift
from hybridlm.export.lower import lower
from hybridlm.export.proof import LIMIT, ROUNDED, prove
from tests.export.common import DEEP, SPOILED, built, draws, sample, spelled


def fitting_model(name: str, number: int) -> hl.HybridLM:
    draw = Random(f"{name} {number}")
    return built(spelled(sample(name).fit(draw), draw), number)


@pytest.mark.parametrize(("name", "number"), draws())
def test_exported_and_read_back(name, number, tmp_path, record_property):
    """Prefill, single steps and a padded batch agree; what is read back is the model, bit by bit.

    Where a model makes more of roundings than the others do, they agree in float64.
    """
    model = fitting_model(name, number)
    lowered = lower(model, tmp_path / "theirs", name)
    record_property("errors", str(dict(lowered.proof.errors)))
    assert lowered.target == name
    assert set(lowered.proof.errors) == {"prefill", "step", "padded"}
    assert max(lowered.proof.errors.values()) <= (ROUNDED if lowered.proof.exact else LIMIT)
    assert max(lowered.proof.exact.values(), default=0.0) <= 1e-11
    lift(tmp_path / "theirs", tmp_path / "ours")
    ids = torch.randint(model.spec.vocab_size, (2, 30))
    assert torch.equal(hl.load(tmp_path / "ours").eval()(ids).logits, model(ids).logits)


def unfit(name: str) -> list:
    """(family, word of the refusal, number): each way to spoil a model, of as many models as make up the matrix."""
    words = [*SPOILED, *sample(name).spoiled]
    return [(name, words[number % len(words)], number) for number in range(max(DEEP, len(words)))]


@pytest.mark.parametrize(("name", "word", "number"), [case for name in FAMILIES for case in unfit(name)])
def test_unfit_is_refused_with_the_reason(name, word, number):
    draw = Random(f"{name} {word} {number}")
    spoil = {**SPOILED, **sample(name).spoiled}[word]
    drawn = spoil(sample(name).fit(draw), draw)
    stack = plan(hl.ModelSpec.from_dict(spelled(drawn, draw)))
    assert any(word in said for said in family(name).misfits(stack))
    with pytest.raises(ExportError, match=re.escape(word)):
        choose(stack, name)


def seen(name: str, folder: Path, number: int, count: int | None) -> dict[str, bool]:
    """{tensor of theirs: whether the proof fails if its entries stand in other places}, of all or of so many.

    A mixer that adds zero has constants alone, and they go unseen.
    """
    model = fitting_model(name, number)
    lower(model, folder, name)
    held = load_file(folder / "model.safetensors")
    made = sorted(weight.theirs for weight in family(name).weights(plan(model.spec)) if weight.ours)
    tried = Random(name).sample(made, len(made) if count is None else min(count, len(made)))
    found = {}
    for theirs in tried:
        save_file({**held, theirs: exchanged(held[theirs])}, folder / "model.safetensors", {"format": "pt"})
        found[theirs] = not prove(model, folder).holds
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_exchanged_entries_are_seen(name, tmp_path):
    assert all(seen(name, tmp_path, 0, 3).values())


@pytest.mark.deep
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_exchanged_entries_of_every_tensor_are_seen(name, number, tmp_path):
    found = seen(name, tmp_path, number, None)
    assert [theirs for theirs, was_seen in found.items() if not was_seen] == []


def exchanged(tensor: torch.Tensor) -> torch.Tensor:
    """Its entries one place on; one number alone, or many that are equal, become others."""
    moved = tensor.flatten().roll(1).view_as(tensor)
    return moved if not torch.equal(moved, tensor) else tensor / 2 + 1


def test_every_family_is_tried():
    for name in FAMILIES:
        assert len({**SPOILED, **sample(name).spoiled}) > len(SPOILED)
        assert sample(name).unread
    for name in SOURCES:
        assert not source(name).architecture or sample(name).unread  # else it has a file of tests of its own
