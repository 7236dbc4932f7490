"""`hybridlm export` and `hybridlm import`: a trained run as others read it, and what a user can mistype."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hybridlm as hl
from hybridlm.cli import main
from hybridlm.export import command, lower, proof, targets
from hybridlm.export.command import export_model, import_model
from hybridlm.export.place import RECORD
from hybridlm.export.remote import write
from hybridlm.files import STAGING
from hybridlm.shards import INDEX
from tests.export.common import built

PROMPT = "the quick brown"
HYBRID = {
    "pattern": "(MA)2",
    "d_model": 32,
    "blocks": {"M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8}}},
}
HYBRID["blocks"] |= {"A": {"mixer": {"type": "attention", "heads": 2}}}


@pytest.fixture
def run(capsys):
    """run("export", ...) -> (exit code, stdout, stderr on one line)."""

    def call_main(*argv):
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, " ".join(re.sub("[╭╮╰╯│─]", " ", err).split())

    return call_main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved hybrid of bytes with every parameter random."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    hl.save(built({**HYBRID, "vocab_size": 256}), folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps on text with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("texts").mkdir()
        for i in range(30):
            Path(f"texts/{i}.txt").write_text(
                f"{i}: the quick brown fox jumps over the lazy dög\n" * 4, encoding="utf-8"
            )
        assert main(["tokenize", "--path", "texts", "--vocab-size", "300"]) == 0
        size = len(json.loads(Path("tokenizer.json").read_text())["model"]["vocab"])
        Path("small.yaml").write_text(f"d_model: 32\nvocab_size: {size}\npattern: AA\n")
        steps = ["--trainer.max_steps", "30", "--trainer.val_check_interval", "30", "--data.batch_size", "4"]
        words = ["--data.path", "texts", "--data.cache", "cache", "--data.context", "24", "--model.lr", "1e-2"]
        more = ["--data.tokenizer", "tokenizer.json", "--run", "run", "--trainer.enable_progress_bar", "false"]
        assert main(["fit", "--model.spec", "small.yaml", *steps, *words, *more]) == 0
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------- a whole way
def test_a_trained_run_writes_the_same_text_with_transformers(trained, run, tmp_path, monkeypatch):
    """Tokenizer included, from the files alone; and it is the same again after it came back."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("export", trained, tmp_path / "out")[0] == 0
    assert run("import", tmp_path / "out", tmp_path / "back", "--prove")[0] == 0
    greedy = ("--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "16")
    text = run("generate", trained, *greedy)[1]
    assert len(text) > len(PROMPT) + 16  # more than a letter a token: it has learned something to say
    assert run("generate", tmp_path / "back", *greedy)[1] == text
    assert _theirs(tmp_path / "out") + "\n" == text


def _theirs(folder):
    """What transformers writes after PROMPT."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")
    model.generation_config.eos_token_id = None  # `hybridlm generate` goes on after the end of a text
    return tokenizer.decode(model.generate(**ids, max_new_tokens=16)[0], skip_special_tokens=True)


def test_what_is_said(saved, run, tmp_path):
    code, out, err = run("export", saved, tmp_path / "out", "--max-length", "100")
    assert code == 0
    assert err.startswith(f"{tmp_path}/out: writing granite_hybrid")
    assert re.search(r"worst error +prefill \d\.\de-0\d, step \d", out)
    for word in ("granite_hybrid", "served by", "vLLM", "allowed 2e-05", "model.safetensors", "README.md", "KiB"):
        assert word in out, word
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 100
    code, out, _ = run("import", tmp_path / "out", tmp_path / "back")
    assert code == 0
    assert "MAMA" in out
    assert "compared" in out
    assert "--prove" in out


def test_json(saved, run, tmp_path):
    code, out, _ = run("export", saved, tmp_path / "out", "--to", "granite_hybrid", "--json")
    said = json.loads(out)
    assert (code, said["target"], said["folder"]) == (0, "granite_hybrid", str(tmp_path / "out"))
    assert set(said["proof"]["errors"]) == {"prefill", "step", "padded"}
    assert 0 < max(said["proof"]["errors"].values()) <= said["proof"]["limit"] == 2e-5
    assert {*said["files"], RECORD} == {path.name for path in (tmp_path / "out").iterdir()}
    assert all((tmp_path / "out" / name).stat().st_size == entry["bytes"] for name, entry in said["files"].items())
    said = json.loads(run("import", tmp_path / "out", tmp_path / "back", "--json", "--prove")[1])
    assert (said["pattern"], said["vocab_size"], said["tokenizer"]) == ("MAMA", 256, True)
    assert max(said["proof"]["errors"].values()) <= 2e-5


def test_another_dtype(saved, tmp_path):
    export_model(str(saved), str(tmp_path / "out"), dtype="bfloat16")
    import_model(str(tmp_path / "out"), str(tmp_path / "back"))
    source, back = hl.load(saved).state_dict(), hl.load(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor.bfloat16(), back[name]) for name, tensor in source.items())
    assert "bfloat16" in (tmp_path / "out/README.md").read_text()


def test_our_own_form(saved, run, tmp_path):
    code, out, _ = run("export", saved, tmp_path / "out", "--to", "safetensors")
    assert code == 0
    assert "bit by bit" in out
    source, back = hl.load(saved), hl.load(tmp_path / "out")
    assert back.spec == source.spec
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert json.loads((tmp_path / "out" / RECORD).read_text())["proof"] is None
    code, _, err = run("import", tmp_path / "out", tmp_path / "back")
    assert code == 2
    assert "hl.load opens it" in err


def test_what_no_family_holds_goes_with_its_code(run, tmp_path, monkeypatch):
    """auto says why; and transformers' cache keeps no copy of the folder that was proved, which is gone."""
    from transformers.utils import HF_MODULES_CACHE

    proved = []
    plainly = write.prove
    monkeypatch.setattr(write, "prove", lambda *args, **how: proved.append(args[1].name) or plainly(*args, **how))
    hl.save(built({"pattern": "SA", "d_model": 32, "vocab_size": 97}), tmp_path / "s4")
    code, out, err = run("export", tmp_path / "s4", tmp_path / "out")
    assert code == 0
    assert "remote-code" in out
    assert "no family is exact for this model" in err
    assert "S: mixer s4; known there: attention" in err
    assert hl.load(tmp_path / "out").spec == hl.load(tmp_path / "s4").spec
    (name,) = proved
    assert name.startswith(STAGING)
    assert list(Path(HF_MODULES_CACHE).rglob(f"*{name.removeprefix(STAGING)}*")) == []


def test_only_what_was_exported_is_replaced(saved, tmp_path):
    out = tmp_path / "out"
    export_model(str(saved), str(out), to="safetensors")
    export_model(str(saved), str(out), overwrite=True)
    assert not (out / "manifest.json").exists()
    assert json.loads((out / "config.json").read_text())["model_type"] == "granitemoehybrid"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match=r"changed since it was exported: README\.md"):
        export_model(str(saved), str(out), overwrite=True)
    assert {path.name for path in out.iterdir()} == set(before)


@pytest.mark.parametrize("target", ["auto", "remote-code", "safetensors"])
def test_weights_in_files_of_a_size(saved, run, tmp_path, target):
    """They are the same weights, read back from all of the files; one form replaces the other."""
    out, limit = tmp_path / "out", 20_000
    assert run("export", saved, out, "--to", target, "--max-shard-bytes", limit)[0] == 0
    shards = sorted(out.glob("model-*.safetensors"))
    held = [load_file(shard) for shard in shards]
    assert len(shards) > 2
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held if len(tensors) > 1]
    assert max(sizes) <= limit
    assert run("export", saved, tmp_path / "whole", "--to", target)[0] == 0
    whole = load_file(tmp_path / "whole/model.safetensors")
    cut = {name: tensor for tensors in held for name, tensor in tensors.items()}
    assert cut.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in cut.items())
    assert {INDEX, *(shard.name for shard in shards)} <= json.loads((out / RECORD).read_text())["files"].keys()
    assert run("export", saved, out, "--to", target, "--overwrite")[0] == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_help_names_every_target():
    assert all(re.search(rf"\b{name}\b", export_model.__doc__) for name in targets.targets())


# ------------------------------------------------------------------------------------------------------- hostile inputs
def files(folder):
    """Everything under a folder, and what is in it."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def refused(run, tmp_path, *argv):
    """The message of a command that is to leave everything as it was."""
    before = files(tmp_path)
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert files(tmp_path) == before
    return err


def test_where_nothing_is_to_be_read(run, tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text("d_model: 32\nvocab_size: 97\npattern: A\n")
    Path("empty").mkdir()
    assert "nowhere: no such folder; give a run" in refused(run, tmp_path, "export", "nowhere", "out")
    assert "hl.build(pattern=" in refused(run, tmp_path, "export", "(M3A)2", "out")
    assert "fit --model.spec model.yaml" in refused(run, tmp_path, "export", "model.yaml", "out")
    assert "no config.json in it" in refused(run, tmp_path, "export", "empty", "out")
    assert "no config.json in it" in refused(run, tmp_path, "import", "empty", "out")
    assert "a file; give its folder" in refused(run, tmp_path, "import", "model.yaml", "out")
    said = refused(run, tmp_path, "import", "meta-llama/Llama-2-7b", "out")
    assert "hf download meta-llama/Llama-2-7b --local-dir Llama-2-7b" in said


def test_damaged_sources(run, tmp_path, saved):
    shutil.copytree(saved, tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "bytes instead of" in refused(run, tmp_path, "export", tmp_path / "cut", tmp_path / "out")
    for text in ("[]", "{", '{"model_type": "hybridlm"}', '{"model_type": "hybridlm", "spec": {"d_model": 3}}'):
        (tmp_path / "cut/config.json").write_text(text)
        refused(run, tmp_path, "export", tmp_path / "cut", tmp_path / "out")


def test_where_nothing_is_to_be_written(run, tmp_path, saved):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    shutil.copytree(saved, tmp_path / "source")
    for name, said in {
        "file": "a file",
        "full": "other things",
        "source/out": "stands beside",
        "source": "beside",
    }.items():
        assert said in refused(run, tmp_path, "export", tmp_path / "source", tmp_path / name, "--overwrite")
    assert "Not a directory" in refused(run, tmp_path, "export", saved, tmp_path / "file/out")
    assert run("export", saved, tmp_path / "theirs")[0] == 0
    for name in ("file", "full", "theirs", "theirs/out"):
        refused(run, tmp_path, "import", tmp_path / "theirs", tmp_path / name)


def test_no_permission(run, tmp_path, saved, monkeypatch):
    def denied(*args, **how):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(os, "mkdir", denied)
    assert "out: Permission denied" in refused(run, tmp_path, "export", saved, tmp_path / "out")


def test_words_that_are_no_target(run, tmp_path, saved):
    said = refused(run, tmp_path, "export", saved, tmp_path / "out", "--to", "granite_hybird")
    assert "Did you mean 'granite_hybrid'?" in said
    said = refused(run, tmp_path, "export", saved, tmp_path / "out", "--to", "zamba2")
    assert "That one is read, and never written" in said
    said = refused(run, tmp_path, "export", saved, tmp_path / "out", "--to", "llama")
    assert "M: mixer mamba2; known there: attention" in said
    assert "It fits: granite_hybrid" in said


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("0", "--max-shard-bytes: 0 is out of range"),
        ("-1", "out of range"),
        ("5GB", "--max-shard-bytes: '5GB' is not an integer"),
        ("1.5", "--max-shard-bytes: '1.5' is not an integer"),
    ],
)
def test_sizes_of_files_that_are_none(run, tmp_path, saved, limit, said):
    assert said in refused(run, tmp_path, "export", saved, tmp_path / "out", "--max-shard-bytes", limit)


@pytest.mark.parametrize(
    ("target", "option", "said"),
    [
        ("torch-export", "--max-shard-bytes", "a program holds its weights"),
        ("onnx", "--max-shard-bytes", "a program holds its weights"),
        ("safetensors", "--max-length", "no file of it says how much"),
    ],
)
def test_options_that_a_target_has_no_place_for(run, tmp_path, saved, target, option, said):
    found = refused(run, tmp_path, "export", saved, tmp_path / "out", "--to", target, option, "99")
    assert f"{option}: {target}: {said}" in found


def test_what_is_no_language_model(run, tmp_path):
    head = {"type": "classify", "classes": 3, "pool": "mean"}
    hl.save(built({"pattern": "A", "d_model": 32, "vocab_size": 97, "head": head}), tmp_path / "classes")
    said = refused(run, tmp_path, "export", tmp_path / "classes", tmp_path / "out", "--to", "llama")
    assert "a language model is needed" in said
    said = refused(run, tmp_path, "export", tmp_path / "classes", tmp_path / "out")
    assert "remote-code: this model cannot be said in it: head: classify" in said
    assert "It fits: safetensors" in said
    assert run("export", tmp_path / "classes", tmp_path / "out", "--to", "safetensors")[0] == 0


def test_weights_that_are_no_numbers(run, tmp_path):
    model = built({"pattern": "AA", "d_model": 32, "vocab_size": 97})
    hl.save(model, tmp_path / "large")
    with torch.no_grad():
        model.blocks[1].mixer.k_proj.weight[3, 3] = float("nan")
    hl.save(model, tmp_path / "nan")
    said = refused(run, tmp_path, "export", tmp_path / "nan", tmp_path / "out")
    assert "blocks.1.mixer.k_proj.weight: NaN or infinite" in said
    said = refused(run, tmp_path, "export", tmp_path / "nan", tmp_path / "out", "--to", "safetensors")
    assert "blocks.1.mixer.k_proj.weight: NaN or infinite" in said
    with torch.no_grad():
        model.blocks[1].mixer.k_proj.weight[3, 3] = 1e9
        model.blocks[0].mlp.down_proj.weight.fill_(3e38)
    hl.save(model, tmp_path / "large")
    said = refused(run, tmp_path, "export", tmp_path / "large", tmp_path / "out", "--dtype", "float16")
    assert "in float16 blocks.0.mlp.down_proj.weight and 1 more: NaN or infinite" in said
    assert "own logits are not finite" in refused(run, tmp_path, "export", tmp_path / "large", tmp_path / "out")


@pytest.mark.parametrize("of", [("out", "x"), ("out",)])
def test_a_proof_that_fails_leaves_nothing(run, tmp_path, saved, monkeypatch, of):
    monkeypatch.setattr(proof.Proof, "holds", property(lambda self: False))
    said = refused(run, tmp_path, "export", saved, tmp_path.joinpath(*of))
    assert "what was written is not the model: prefill" in said


def test_an_import_that_is_not_the_model_leaves_nothing(run, tmp_path, saved, monkeypatch):
    assert run("export", saved, tmp_path / "theirs")[0] == 0
    monkeypatch.setattr(proof.Proof, "holds", property(lambda self: False))
    said = refused(run, tmp_path, "import", tmp_path / "theirs", tmp_path / "out", "--prove")
    assert "not the model" in said


def test_without_transformers(run, tmp_path, saved, monkeypatch):
    """It is said before anything is written; our own form needs none."""
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(lower, "write_weights", lambda *args: pytest.fail("written"))
    assert "pip install 'hybridlm[hf]'" in refused(run, tmp_path, "export", saved, tmp_path / "out")
    assert run("export", saved, tmp_path / "out", "--to", "safetensors")[0] == 0
    assert "transformers" not in command._versions()
