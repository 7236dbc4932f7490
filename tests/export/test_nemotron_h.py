"""Nemotron-H's config.json, word by word, and the forms in which its checkpoints come."""

import json
import math
from random import Random

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hybridlm as hl
from hybridlm.errors import ExportError
from hybridlm.export.family import family
from hybridlm.export.fields import Fields
from hybridlm.export.lift import lift
from hybridlm.export.lower import lower
from hybridlm.export.proof import prove
from tests.export.common import WORDS, D, built, randomised
from tests.export.samples.nemotron_h import experts, theirs

MIXERS = {
    "M": {"mixer": {"type": "mamba2", "head_dim": 8, "d_state": 5}, "mlp": "none"},
    "A": {"mixer": {"type": "attention", "heads": 4, "head_dim": 6}, "mlp": "none"},
}


def model(pattern: str = "M-A", **more) -> hl.HybridLM:
    blocks = MIXERS | {"E": {"mixer": "none", "mlp": experts(Random(0))}}
    spec = {"d_model": D, "vocab_size": WORDS, "pattern": pattern, "mlp": {"type": "relu2", "width": 24}}
    return built({**spec, "blocks": {name: blocks[name] for name in blocks if name in pattern}, **more})


def written(folder, given: hl.HybridLM) -> dict:
    lower(given, folder, "nemotron_h")
    return json.loads((folder / "config.json").read_text())


def test_layers_are_said_once_as_sglang_and_llama_cpp_read_them(tmp_path):
    config = written(tmp_path, model("MA--M"))
    assert config["hybrid_override_pattern"] == "M*--M"
    assert config["num_hidden_layers"] == 5
    assert not {"layers_block_type", "layer_types"} & config.keys()


def test_no_word_of_experts_where_there_are_none(tmp_path):
    words = ("expert", "moe", "topk", "n_group", "routed")
    config = written(tmp_path / "dense", model())
    assert [name for name in config if any(word in name for word in words)] == ["n_groups"]
    config = written(tmp_path / "sparse", model("MAE"))
    assert config["n_routed_experts"] == experts(Random(0))["experts"]


def test_no_limits_on_steps_and_no_window(tmp_path):
    config = written(tmp_path, model())
    assert config["time_step_min"] == 0.0
    assert not {"time_step_limit", "sliding_window"} & config.keys()


def test_small_steps_need_the_word_for_it(tmp_path):
    """Without time_step_min transformers bounds dt from below, in a prefill alone."""
    given = model()
    for name, parameter in given.named_parameters():
        if name.endswith("dt_bias"):
            parameter.data.fill_(-9.0)
        if name.endswith("in_proj.weight"):
            parameter.data[-8:] = 0.0  # dt of the heads
    config = written(tmp_path, given)
    del config["time_step_min"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    errors = prove(given, tmp_path).errors
    assert errors["prefill"] > 1e-4


def test_the_output_is_written_in_any_case(tmp_path):
    given = model(tie_embeddings=True)
    assert written(tmp_path, given)["tie_word_embeddings"] is False
    held = load_file(tmp_path / "model.safetensors")
    assert torch.equal(held["lm_head.weight"], held["backbone.embeddings.weight"])
    assert torch.equal(held["lm_head.weight"], given.embed.weight)
    assert all(name.startswith(("backbone.", "lm_head.")) for name in held)


def test_a_width_that_is_no_multiple_is_not_said_as_one(tmp_path):
    assert written(tmp_path / "whole", model())["expand"] == 2
    blocks = MIXERS | {"M": {"mixer": {"type": "mamba2", "head_dim": 8, "expand": 1.25}, "mlp": "none"}}
    config = written(tmp_path / "part", model(blocks=blocks))
    assert "expand" not in config
    assert config["mamba_num_heads"] * config["mamba_head_dim"] == 40


def checkpoint(folder, original: bool):
    """Of random weights, as published or as transformers holds it."""
    sizes = theirs(Random(1)) | {"hybrid_override_pattern": "M*E-"}
    torch.manual_seed(0)
    found = transformers.NemotronHForCausalLM(transformers.NemotronHConfig(**sizes))
    randomised(found).save_pretrained(folder, save_original_format=original)


def test_both_forms_of_names_are_read(tmp_path):
    logits = []
    for original in (True, False):
        checkpoint(tmp_path / f"theirs-{original}", original)
        lift(tmp_path / f"theirs-{original}", tmp_path / f"ours-{original}")
        logits.append(hl.load(tmp_path / f"ours-{original}").eval()(torch.arange(20)[None]).logits)
    names = [set(load_file(tmp_path / f"theirs-{original}" / "model.safetensors")) for original in (True, False)]
    assert not {name for name in names[0] & names[1] if name != "lm_head.weight"}
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers_block_type": ["mamba", "mlp"]}, "hybrid_override_pattern: not the same layers as layers_block_type"),
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern: missing"),
        ({"hybrid_override_pattern": "M*x"}, "hybrid_override_pattern: 'x'"),
        ({"time_step_min": math.nan}, "time_step_min: nan"),
        ({"n_group": 2, "hybrid_override_pattern": "*E", "num_hidden_layers": 2}, "n_group: 2"),
        ({"moe_latent_size": 8, "hybrid_override_pattern": "*E", "num_hidden_layers": 2}, "moe_latent_size: 8"),
    ],
)
def test_what_cannot_be_read(tmp_path, changes, said):
    config = written(tmp_path, model()) | changes
    with pytest.raises(ExportError) as raised:
        family("nemotron_h").spec(Fields(config, "config.json"))
    assert said in str(raised.value)
