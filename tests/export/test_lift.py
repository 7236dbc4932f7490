"""lift: what a folder has to hold, in its config and in its weights; and that a refusal leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hybridlm as hl
from hybridlm.errors import CheckpointError, ExportError
from hybridlm.export.command import import_model
from hybridlm.export.lift import lift, read_config
from hybridlm.export.lower import lower
from hybridlm.export.proof import prove
from tests.export.common import built

LLAMA = {
    "pattern": "A2",
    "d_model": 32,
    "vocab_size": 97,
    "blocks": {"A": {"mixer": {"type": "attention", "heads": 4}}},
}
NOPE = {**LLAMA, "blocks": {"A": {"mixer": {"type": "attention", "heads": 4, "rope": False}}}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lift") / "theirs"
    lower(built(LLAMA), folder)
    return folder


@pytest.fixture
def theirs(exported, tmp_path) -> Path:
    """A copy, to be spoilt."""
    return shutil.copytree(exported, tmp_path / "theirs")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(folder: Path, **tensors: Tensor | None) -> Path:
    """The checkpoint with other tensors. None: without it."""
    held = {**load_file(folder / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


MAMBA2 = {
    "pattern": "M2",
    "d_model": 32,
    "vocab_size": 97,
    "blocks": {"M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8}, "mlp": "none"}},
}


def configured(folder: Path, **fields) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


# --------------------------------------------------------------------------------------------------------- its weights
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({Q: None}, f"{Q}: missing"),
        ({Q: torch.zeros(32, 31)}, rf"{Q}: shape \(32, 31\), and the config asks for \(32, 32\)"),
        ({Q: torch.zeros(32 * 32)}, f"{Q}: shape"),
        ({Q.replace("1", "2"): torch.zeros(32, 32)}, "model.layers.2.self_attn.q_proj.weight: not in a model of this"),
        ({Q: None, Q.replace("q_proj", "q_prj"): torch.zeros(32, 32)}, "Did you mean 'model.layers.1.self_attn.q_proj"),
        ({Q.replace("weight", "bias"): torch.zeros(32)}, "q_proj.bias: not in a model of this config"),
        ({Q: torch.zeros(32, 32, dtype=torch.int64)}, f"of another dtype than float32, .*\n  {Q}: int64"),
        ({Q: torch.zeros(32, 32, dtype=torch.bool)}, f"{Q}: bool"),
        ({Q: torch.zeros(32, 32).to(torch.float8_e4m3fn)}, f"{Q}: float8_e4m3fn"),
        ({"lm_head.weight": None}, "lm_head.weight: missing"),
        ({"model.embed_tokens.weight": None}, "model.embed_tokens.weight: missing"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_tensors_that_do_not_fit(theirs, tmp_path, tensors, word, there):
    out = tmp_path / "out"
    if there:
        hl.save(built({**LLAMA, "pattern": "A"}), out)
    rewritten(theirs, **tensors)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=word):
        lift(theirs, out)
    assert files(tmp_path) == before
    assert out.exists() == there


def test_every_fault_is_told_at_once(theirs, tmp_path):
    rewritten(theirs, **{Q: None, "model.norm.weight": None, "other": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        lift(theirs, tmp_path / "out")
    assert all(name in str(caught.value) for name in (Q, "model.norm.weight", "other"))


@pytest.mark.parametrize("damage", ["cut", "empty", "none", "noise"])
def test_damaged_files(theirs, tmp_path, damage):
    path = theirs / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-8], "empty": b"", "none": b"", "noise": b"x" * len(whole)}[damage])
    if damage == "none":
        path.unlink()
    with pytest.raises(CheckpointError, match="theirs"):
        lift(theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_output_may_stand_twice_if_it_is_the_same(tmp_path):
    lower(built({**LLAMA, "tie_embeddings": True}), tmp_path / "theirs")
    embedding = load_file(tmp_path / "theirs" / "model.safetensors")["model.embed_tokens.weight"]
    rewritten(tmp_path / "theirs", **{"lm_head.weight": embedding.clone()})
    assert lift(tmp_path / "theirs", tmp_path / "ours").tie_embeddings
    assert "lm_head.weight" not in hl.load(tmp_path / "ours").state_dict()
    rewritten(tmp_path / "theirs", **{"lm_head.weight": embedding + 1e-6})
    with pytest.raises(CheckpointError, match="lm_head"):
        lift(tmp_path / "theirs", tmp_path / "other")


def test_what_follows_from_the_config_may_stand_there(theirs, tmp_path):
    rewritten(theirs, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    lift(theirs, tmp_path / "ours")
    assert "inv_freq" not in str(list(hl.load(tmp_path / "ours").state_dict()))


def test_sinks_that_take_something_from_attention_are_refused(tmp_path):
    lower(built(NOPE), tmp_path / "theirs", "granite_swa")
    lift(tmp_path / "theirs", tmp_path / "ours")
    name = "model.layers.1.self_attn.sinks"
    rewritten(tmp_path / "theirs", **{name: torch.tensor([-1e4, -1e4, 0.5, -1e4])})
    with pytest.raises(CheckpointError, match=f"{name}: only -10000 in every entry"):
        lift(tmp_path / "theirs", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinks_survive_roundings(tmp_path, dtype):
    model = built(NOPE).to(dtype)
    lower(model, tmp_path / "theirs", "granite_swa")
    lift(tmp_path / "theirs", tmp_path / "ours")
    again = hl.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- its config
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        ("[]", "a list; a config.json holds a mapping"),
        ("{}", "model_type: None; these can be read: .*llama"),
        ('{"model_type": "lama"}', "Did you mean 'llama'"),
        ('{"model_type": ["llama"]}', "these can be read"),
        ('{"model_type": "hybridlm"}', "hl.load opens it"),
        ('{"model_type": "gpt2"}', "gpt2"),
        ('{"model_type": "llama"}', "hidden_size: missing"),
        ("\xff", "not JSON"),
    ],
)
def test_configs_that_are_none(theirs, tmp_path, text, word):
    (theirs / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match=word):
        lift(theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ExportError, match="no such folder"):
        lift(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"no config\.json in it"):
        read_config(tmp_path / "empty")
    with pytest.raises(ExportError, match="not a path"):
        lift(3, tmp_path / "out")


def test_every_field_that_does_not_fit_is_told_at_once(theirs, tmp_path):
    configured(theirs, hidden_act="gelu", sliding_window=8, mlp_bias=True, rope_scaling={"type": "yarn"})
    with pytest.raises(ExportError) as caught:
        lift(theirs, tmp_path / "out")
    assert str(theirs / "config.json") in str(caught.value)
    assert all(name in str(caught.value) for name in ("hidden_act", "sliding_window", "mlp_bias", "rope_scaling.type"))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 4, "head_dim": 8}, "kv_heads"),
        ({"head_dim": 7}, "head_dim: 7 is odd"),
        ({"rms_norm_eps": 3.0}, "norm_eps"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"vocab_size": -1}, "vocab_size"),
    ],
)
def test_a_model_that_cannot_be_is_told_with_the_file(theirs, tmp_path, fields, word):
    configured(theirs, **fields)
    with pytest.raises(ExportError, match=f"config.json(.|\n)*{word}"):
        lift(theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_asks_for_other_sizes(theirs, tmp_path):
    configured(theirs, intermediate_size=77)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight: shape .*the config asks for \(77, 32\)"):
        lift(theirs, tmp_path / "out")


def test_what_is_silent_is_what_transformers_takes_it_for(theirs, tmp_path):
    """Fields that are left out or null, as old checkpoints have them."""
    config = json.loads((theirs / "config.json").read_text())
    for name in ("num_key_value_heads", "head_dim", "rope_parameters", "rope_theta", "tie_word_embeddings", "mlp_bias"):
        config.pop(name)
    (theirs / "config.json").write_text(json.dumps({**config, "rope_scaling": None, "pretraining_tp": 1, "new": None}))
    lift(theirs, tmp_path / "ours")
    ids = torch.randint(97, (2, 9))
    assert torch.equal(hl.load(tmp_path / "ours").eval()(ids).logits, built(LLAMA)(ids).logits)


@pytest.mark.parametrize("name", ["granite_hybrid", "granite_swa"])
def test_one_head_of_an_odd_width(tmp_path, name):
    """Where the config says no width, it is d_model / heads; ours would be even."""
    heads = {"A": {"mixer": {"type": "attention", "heads": 1, "head_dim": 33, "rope": False}}}
    blocks = {**heads, "M": {"mixer": {"type": "mamba2", "d_state": 5, "head_dim": 3, "chunk": 7}}}
    model = built(
        {"pattern": "A" if name == "granite_swa" else "MA", "d_model": 33, "vocab_size": 97, "blocks": blocks}
    )
    lower(model, tmp_path / "theirs", name)
    lift(tmp_path / "theirs", tmp_path / "ours")
    ids = torch.randint(97, (2, 19))
    assert torch.equal(hl.load(tmp_path / "ours").eval()(ids).logits, model(ids).logits)


def test_a_field_that_transformers_ignores_is_told(tmp_path, capsys):
    """Transformers makes the same model of it, and so does the import, which says so."""
    lower(built(MAMBA2), tmp_path / "theirs")
    configured(tmp_path / "theirs", norm_before_gate=True)
    with pytest.warns(UserWarning, match=r"config\.json: norm_before_gate: true was not followed: .* behind the gate"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    assert prove(hl.load(tmp_path / "ours"), tmp_path / "theirs").holds
    import_model(str(tmp_path / "theirs"), str(tmp_path / "by-command"))
    assert "norm_before_gate: true was not followed" in capsys.readouterr().out.split("\nnote ")[1]
    configured(tmp_path / "theirs", norm_before_gate=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lift(tmp_path / "theirs", tmp_path / "again")
