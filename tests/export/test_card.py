"""The README of an export: its code runs, its commands are those of what serves it, and it says what was not run."""

import json
import re
import shlex
import shutil
from functools import cache

import pytest
import yaml

import hybridlm as hl
from hybridlm.export.card import Facts, write_card
from hybridlm.export.command import export_model
from hybridlm.export.original import read_original
from hybridlm.export.proof import Proof
from hybridlm.export.targets import targets
from hybridlm.train.tokenize import train_tokenizer
from tests.export.common import built

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8}},
    "A": {"mixer": {"type": "attention", "heads": 2}},
}
MODELS = {
    "llama": {"pattern": "AA", "vocab_size": 300, "blocks": {"A": BLOCKS["A"]}},
    "granite_hybrid": {"pattern": "MA", "vocab_size": 97, "blocks": BLOCKS},
    "remote-code": {"pattern": "<M|A>A", "vocab_size": 256, "blocks": BLOCKS},
    "torch-export": {"pattern": "A", "vocab_size": 61, "blocks": {"A": BLOCKS["A"]}},
    "onnx": {"pattern": "A", "vocab_size": 61, "blocks": {"A": BLOCKS["A"]}},
}


DEEP = ("torch-export", "onnx")  # tracing takes its time
TARGETS = [pytest.param(name, marks=pytest.mark.deep if name in DEEP else ()) for name in MODELS]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """card(target) -> (folder, text of its README); each is exported once."""
    place = tmp_path_factory.mktemp('a place\'s "name"')

    @cache
    def export(target):
        hl.save(built({**MODELS[target], "d_model": 32}), place / f"model-{target}")
        if target == "llama":
            (place / "text.txt").write_text("Once upon a time there was a model. " * 9)
            train_tokenizer(str(place / "text.txt"), vocab_size=300, output=place / "model-llama/tokenizer.json")
        export_model(str(place / f"model-{target}"), str(place / target), to=target)
        return place / target, (place / target / "README.md").read_text(encoding="utf-8")

    return export


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_its_code_runs(card, target, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for code in blocks(card(target)[1], "python"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    words = {256: r"Once upon a time", 300: r"Once upon a time", 97: r"tensor\(\[", 61: r"(\d+ ){20}"}
    assert re.search(words[MODELS[target]["vocab_size"]], out)


@pytest.mark.parametrize("words", [1, 2, 3])
def test_its_code_runs_with_few_ids(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hl.save(built({**MODELS["llama"], "d_model": 32, "vocab_size": words}), tmp_path / "model")
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), to="llama")
    (code,) = blocks((tmp_path / "out/README.md").read_text(), "python")
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert re.search(r"tensor\(\[", capsys.readouterr().out)


@pytest.mark.parametrize("target", TARGETS)
def test_its_commands_are_those_of_what_serves_it(card, target):
    folder, text = card(target)
    served = [name for name in targets()[target].served_by if "llama.cpp" not in name or target == "llama"]
    programs = {"vllm": "vLLM", "python -m sglang": "SGLang", "python convert_hf": "llama.cpp"}
    for word, server in programs.items():
        said = [line for block in blocks(text, "sh") for line in block.splitlines() if line.startswith(word)]
        assert len(said) == any(name.startswith(server) for name in served)
        assert all(str(folder) in shlex.split(line, comments=True) for line in said)
    not_run = re.findall(r"^Not run: (.*)\.$", text, re.MULTILINE)
    assert not_run == {"llama": ["vLLM, SGLang, llama.cpp"], "granite_hybrid": ["vLLM, SGLang"]}.get(target, [])
    assert len(re.findall("; not run here:", text)) == len(served) - 1


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_measured_is_what_is_recorded(card, target):
    folder, text = card(target)
    record = json.loads((folder / "export.json").read_text())
    for error in record["proof"]["errors"].values():
        assert f"| {error:.1e} | {record['proof']['limit']:.0e} |" in text
    assert f"rows of {record['proof']['tokens']} tokens" in text
    assert all(f"{name} {version}" in text for name, version in record["versions"].items())
    assert f"- {target}\n" in text


def test_what_only_float64_shows_is_stated(tmp_path, capsys):
    """Of a model that makes more of what float32 rounds: both figures, in card, record and table."""
    mixer = {"type": "mamba", "dt_rank": 1, "d_state": 4, "bcdt_norm": True}
    blocks = {"m": {"mixer": mixer}, "A": {"mixer": {"type": "attention", "heads": 2, "rope": False}}}
    spec = {"pattern": "mAm", "d_model": 32, "vocab_size": 97, "blocks": blocks, "mlp": {"type": "swiglu", "width": 24}}
    hl.save(built(spec, 24), tmp_path / "model")
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), to="jamba")
    proof = json.loads((tmp_path / "out/export.json").read_text())["proof"]
    text, said = (tmp_path / "out/README.md").read_text(), capsys.readouterr().out
    assert max(proof["errors"].values()) > proof["limit"]
    assert proof["float64"]["limit"] == 1e-8
    for error in proof["float64"]["errors"].values():
        assert f"| {error:.1e} | 1e-08 |" in text
        assert f"{error:.1e}" in said
    assert "in float64 as well, and there they are the same model" in text


def test_the_model_is_told(card):
    folder, text = card("remote-code")
    (front,) = re.findall(r"\A---\n(.*?)\n---\n", text, re.DOTALL)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hybridlm", "remote-code"],
    }
    assert blocks(text, "text") == ["<M|A>A"]
    assert "| `<M\\|A>` | 1 | mamba2 (d_state 8, head_dim 8" in text
    assert " beside attention (heads 2" in text
    parameters = sum(tensor.numel() for tensor in hl.load(folder).parameters())
    assert f"| parameters | {parameters:,} |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4, 5}  # of three tables, whole ones


def test_what_reads_signals_is_told_as_what_it_is(tmp_path):
    spec = {"embed": {"type": "linear", "channels": 2}, "head": {"type": "classify", "classes": 3, "pool": "last"}}
    hl.save(built({"pattern": "S", "d_model": 32, **spec}), tmp_path / "saved")
    facts = Facts("out", targets()["torch-export"], Proof({"prefill": 1e-6}, 9), {"hybridlm": "1.2.3"}, 8)
    write_card(read_original(str(tmp_path / "saved")), facts, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "A model, composed with hybridlm 1.2.3" in text
    assert "| reads | linear (channels 2) |" in text
    assert '| writes | classify (classes 3, pool "last") |' in text
    assert not re.search("language model|text-generation|tokenizer", text)


def test_llama_cpp_is_named_only_where_it_runs_the_model(tmp_path):
    """It computes something else of a Granite hybrid with rotary positions, refuses other widths of Mamba, and takes an
    MLP of Nemotron-H for Mamba. Nor does it open a vocabulary without merges, as that of bytes is.
    """
    tokenizer = train_tokenizer(__file__, vocab_size=260, output=tmp_path / "tokenizer.json")
    rotary = {"M": BLOCKS["M"], "A": {"mixer": {"type": "attention", "heads": 2, "rope": True}}}
    narrow = {"M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8, "expand": 1}, "mlp": "none"}}
    squared = {"M": {**BLOCKS["M"], "mlp": "relu2"}, "A": {**BLOCKS["A"], "mlp": "none"}}
    models = (("granite_hybrid", rotary, "MA"), ("mamba2", narrow, "M"), ("nemotron_h", squared, "MAM"))
    for name, blocks_, pattern in models:
        hl.save(built({"pattern": pattern, "d_model": 32, "vocab_size": 260, "blocks": blocks_}), tmp_path / pattern)
        shutil.copy(tokenizer, tmp_path / pattern)
        export_model(str(tmp_path / pattern), str(tmp_path / name), to=name)
        text = (tmp_path / name / "README.md").read_text()
        assert "vllm serve" in text
        assert "llama.cpp" not in text


def test_a_vocabulary_that_servers_pad_gets_a_note(card):
    assert "97 token ids; not a multiple of 16, to which some servers pad it (112)" in card("granite_hybrid")[1]
    assert "| vocabulary | 256 token ids |" in card("remote-code")[1]


def test_context_and_tokenizer_are_the_runs(tmp_path):
    hl.save(built({**MODELS["llama"], "vocab_size": 256, "d_model": 32}), tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("data:\n  context: 8192\n")
    for name, folder in {"a": "run", "b": "run/model"}.items():
        export_model(str(tmp_path / folder), str(tmp_path / name), to="llama")
        text = (tmp_path / name / "README.md").read_text()
        assert "| trained on | windows of 8,192 tokens |" in text
        assert "| longest input | 8,192 tokens, says config.json |" in text
        assert "| tokenizer | bytes of UTF-8, a token each |" in text
    (tmp_path / "run/config.yaml").write_text("data: {context: some}")
    export_model(str(tmp_path / "run"), str(tmp_path / "c"), to="llama")
    assert "| trained on | not recorded |" in (tmp_path / "c/README.md").read_text()
