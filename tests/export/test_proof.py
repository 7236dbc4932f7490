"""The proof of an export: what it sees, what it lets pass as rounding, and what it leaves as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hybridlm as hl
from hybridlm.errors import ExportError, UnsupportedError
from hybridlm.export.lower import lower
from hybridlm.export.proof import EXACT, LIMIT, ROUNDED, Proof, in_float64, long_prompt, prove, worst
from tests.export.common import built

LLAMA = {
    "pattern": "AA",
    "d_model": 32,
    "vocab_size": 97,
    "blocks": {
        "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2}, "mlp": {"type": "swiglu", "width": 24}}
    },
}
NAMES = ("prefill", "step", "padded")
Q = "model.layers.1.self_attn.q_proj.weight"
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def model() -> hl.HybridLM:
    return built(LLAMA)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    lower(model, tmp_path / "theirs")
    return tmp_path / "theirs"


def rewritten(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """The export with other tensors. None: without it."""
    held = {**load_file(folder / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def weight(folder: Path, name: str = Q) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


# --------------------------------------------------------------------------------------------------------- its verdict
def of(error: float, exact: float | None = None) -> Proof:
    """A proof that is good but for one error."""
    wide = {} if exact is None else {**dict.fromkeys(NAMES, 1e-15), "step": exact}
    return Proof({**dict.fromkeys(NAMES, 1e-7), "step": error}, 28, exact=wide)


@pytest.mark.parametrize(
    ("error", "exact", "holds"),
    [
        (LIMIT, None, True),
        (LIMIT * 1.01, None, False),
        (NAN, None, False),
        (INF, None, False),
        (LIMIT * 1.01, EXACT, True),
        (ROUNDED, EXACT, True),
        (ROUNDED * 1.01, 0.0, False),
        (LIMIT * 1.01, EXACT * 1.01, False),
        (LIMIT * 1.01, NAN, False),
        (NAN, 0.0, False),
    ],
)
def test_what_holds(error, exact, holds):
    proof = of(error, exact)
    assert proof.holds is holds
    if holds:
        proof.require("llama")
    else:
        with pytest.raises(ExportError, match=r"llama: what was written is not the model: .*step"):
            proof.require("llama")


def test_nothing_compared_is_nothing_proved():
    assert not Proof({}, 28).holds


def test_a_refusal_states_both_figures():
    with pytest.raises(ExportError, match=r"step 3\.0e-04.* and 2e-05 is allowed; in float64 .*step 2\.0e-05.*1e-08"):
        of(3e-4, 2e-5).require("llama")


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [
        ([3.0, 4.5], [3.0, 4.0], 0.5 / 12.5**0.5),
        ([NAN, 0.0], [1.0, 1.0], INF),
        ([0.0], [0.0], INF),
        ([1.0], [0.0], INF),
    ],
)
def test_errors_are_in_units_of_the_rms(found, wanted, error):
    """Where that is 0, no error is small."""
    assert worst(torch.tensor(found), torch.tensor(wanted)) == pytest.approx(error)


# --------------------------------------------------------------------------------------------------------- what it sees
def test_an_export_that_is_the_model(model, folder):
    proof = prove(model, folder)
    assert proof.holds
    assert set(proof.errors) == set(NAMES)
    assert (proof.exact, proof.tokens, proof.limit) == ({}, 28, LIMIT)


def test_exchanged_entries(model, folder):
    proof = prove(model, rewritten(folder, **{Q: weight(folder).flip(0)}))
    assert not proof.holds
    assert proof.exact == {}  # what is so far off is no rounding


def test_a_deviation_that_might_be_rounding(model, folder):
    """Too large for float32, and in float64 as large."""
    proof = prove(model, rewritten(folder, **{Q: weight(folder) * (1 + 1e-3)}))
    assert LIMIT < max(proof.errors.values()) < ROUNDED
    assert max(proof.exact.values()) == pytest.approx(max(proof.errors.values()), rel=0.05)
    assert not proof.holds


def test_rounding_that_the_model_makes_more_of(tmp_path):
    """Norms of a single number each, close to 0: float32 is off, and float64 is not."""
    mixer = {"type": "mamba", "dt_rank": 1, "d_state": 4, "bcdt_norm": True}
    blocks = {"m": {"mixer": mixer}, "A": {"mixer": {"type": "attention", "heads": 2, "rope": False}}}
    spec = {"pattern": "mAm", "d_model": 32, "vocab_size": 97, "blocks": blocks, "mlp": {"type": "swiglu", "width": 24}}
    proof = lower(built(spec, 24), tmp_path, "jamba").proof
    assert LIMIT < max(proof.errors.values()) < ROUNDED
    assert set(proof.exact) == set(NAMES)
    assert max(proof.exact.values()) < 1e-11


def test_weights_of_another_dtype(model, folder):
    """Rounded ones are another model; of a model that is rounded itself they are the same."""
    for name, tensor in load_file(folder / "model.safetensors").items():
        rewritten(folder, **{name: tensor.bfloat16()})
    assert not prove(model, folder).holds
    assert prove(model.bfloat16(), folder).holds


@pytest.mark.parametrize(
    ("tensors", "word"),
    [({Q: None}, "did not find the weights"), ({Q: torch.zeros(3)}, "transformers (cannot|did not)")],
)
def test_weights_that_do_not_fit(model, folder, tensors, word):
    with pytest.raises(ExportError, match=word):
        prove(model, rewritten(folder, **tensors))


def test_not_a_number_in_the_export(model, folder):
    proof = prove(model, rewritten(folder, **{Q: weight(folder) * NAN}))
    assert proof.errors == dict.fromkeys(NAMES, INF)
    assert not proof.holds


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no such"}'])
def test_a_config_that_transformers_cannot_read(model, folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ExportError, match="transformers cannot run what was written"):
        prove(model, folder)


def test_another_config(model, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 2 * config["rms_norm_eps"]}))
    assert not prove(model, folder).holds


@pytest.mark.parametrize(("value", "word"), [(NAN, "not finite"), (INF, "not finite"), (0.0, "all 0")])
def test_answers_that_could_prove_nothing(model, folder, value, word):
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    with pytest.raises(ExportError, match=f"the model's own logits are {word}"):
        prove(model, folder)


def test_without_transformers(model, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'hybridlm\[hf\]'"):
        prove(model, folder)


@pytest.mark.parametrize(("window", "tokens"), [(None, 24), (5, 24), (100, 108), (2040, 2048), (9999, 2048)])
def test_windows_are_passed(window, tokens):
    mixer = {"type": "attention"} if window is None else {"type": "sliding_window", "window": window}
    spec = {"pattern": "A<B|A>", "blocks": {"A": {"mixer": "attention"}, "B": {"mixer": mixer}}}
    assert long_prompt(hl.build(**spec, d_model=32, vocab_size=7, device="meta")) == tokens


# ------------------------------------------------------------------------------------------------ what stays as it was
def test_the_model_and_the_process_stay_as_they_were(model, folder):
    """Also where float64 is asked, and where something is raised."""
    model.bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    log = transformers.logging
    settings = log.get_verbosity(), log.is_progress_bar_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()
    prove(model, rewritten(folder, **{Q: weight(folder) * (1 + 1e-3)}))
    (folder / "config.json").unlink()
    with pytest.raises(ExportError):
        prove(model, folder)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.bfloat16 and parameter.requires_grad for parameter in model.parameters())
    after = log.get_verbosity(), log.is_progress_bar_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert after == settings


def test_in_float64_float32_is_float64():
    def dtypes():
        x = torch.zeros(2)
        made = [
            x,
            x.float(),
            x.to(torch.float32),
            x.softmax(0, dtype=torch.float32),
            torch.ones(2, dtype=torch.float32),
        ]
        return {tensor.dtype for tensor in made}

    with in_float64():
        assert dtypes() == {torch.float64}
        assert torch.zeros(2, dtype=torch.int64).dtype == torch.int64
        assert torch.zeros(2).bfloat16().dtype == torch.bfloat16  # what is rounded on purpose stays so
    with pytest.raises(RuntimeError, match="inside"), in_float64():
        raise RuntimeError("inside")
    assert dtypes() == {torch.float32}
