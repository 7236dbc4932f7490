"""Every family from checkpoints that transformers wrote: the same logits, and nothing read that is not understood."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError, PatternError, SpecError
from hybridlm.export.family import FAMILIES, SOURCES, source
from hybridlm.export.fields import Fields
from hybridlm.export.lift import lift
from hybridlm.export.proof import LIMIT, prove
from tests.export.common import draws, randomised, sample

IMPORTED = tuple(name for name in (*FAMILIES, *SOURCES) if source(name).architecture)


def saved(name: str, number: int, folder: Path) -> Path:
    """A checkpoint of random sizes and random weights, as transformers writes it."""
    architecture = source(name).architecture
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    torch.manual_seed(number)
    sizes = sample(name).theirs(Random(f"{name} {number}"))
    model = getattr(transformers, architecture)._from_config(config(**sizes), attn_implementation="eager")
    randomised(model, number).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "number"), draws(6, IMPORTED))
def test_same_logits(name, number, tmp_path, record_property):
    lift(saved(name, number, tmp_path / "theirs"), tmp_path / "ours")
    proof = prove(hl.load(tmp_path / "ours"), tmp_path / "theirs")
    record_property("errors", str(dict(proof.errors)))
    assert max(proof.errors.values()) <= LIMIT


@cache
def config(name: str) -> dict[str, Any]:
    """What is in a config.json that can be read."""
    with TemporaryDirectory() as folder:
        return json.loads((saved(name, 0, Path(folder)) / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "field", "value"), [(name, *pair) for name in IMPORTED for pair in sample(name).unread]
)
def test_what_changes_the_mathematics_is_refused_by_name(name, field, value):
    names = [field, *(value if isinstance(value, dict) else ())]
    source(name).spec(Fields(config(name), "config.json"))
    with pytest.raises(ExportError, match="|".join(names)):
        source(name).spec(Fields({**config(name), field: value}, "config.json"))


GONE = object()
JUNK = (
    None,
    "x",
    "",
    -1,
    0,
    1,
    3,
    0.5,
    10**30,
    10**400,
    True,
    [],
    ["x"],
    [None],
    [{}],
    [[1]],
    {},
    {"x": 1},
    float("nan"),
    float("inf"),
)


PARTS = 4  # every field and every kind of junk is in each of them, each pair in one
in_parts = pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.deep) for i in range(1, PARTS))])


@in_parts
@pytest.mark.parametrize("name", IMPORTED)
def test_junk_in_any_field_is_read_or_refused(name, part):
    """No value of any field brings anything but a model, or an error that is made for people."""
    for i, field in enumerate(config(name)):
        for junk in (*JUNK, GONE)[(part - i) % PARTS :: PARTS]:
            read_or_refused(name, {field: junk})


@in_parts
@pytest.mark.parametrize("name", IMPORTED)
def test_what_is_worked_out_of_other_fields_is_not_worked_out_of_junk(name, part):
    """Of a number of heads that is 0, say, where their width is missing."""
    for i, field in enumerate(config(name)):
        for other in list(config(name))[(part - i) % PARTS :: PARTS]:
            read_or_refused(name, {field: 0, other: GONE})


def read_or_refused(name, changed):
    given = {field: value for field, value in {**config(name), **changed}.items() if value is not GONE}
    try:
        plan(source(name).spec(Fields(given, "config.json")))
    except (ExportError, SpecError, PatternError):
        pass
    except Exception as error:
        raise AssertionError(str(changed)) from error
