"""The one command: what it prints, what it refuses and with which exit code, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hybridlm
from hybridlm import cli, resources
from hybridlm.cli import COMMANDS, main
from hybridlm.cli.describe import readable_bytes, readable_count, where
from hybridlm.cli.mixers import catalogue
from hybridlm.cli.models import model_path
from hybridlm.cli.parser import call
from hybridlm.cli.schema import model_schema
from hybridlm.errors import DataError
from hybridlm.registry import mixers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(capsys):
    """run("describe", "MA") -> (exit code, stdout, stderr on one line, without the panel's frame)."""

    def call_main(*argv: str):
        code = main(list(argv))
        out, err = capsys.readouterr()
        return code, out, " ".join(re.sub("[╭╮╰╯│─]", " ", err).split())

    return call_main


def fresh(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------------- command
def test_python_m_is_the_command():
    assert fresh("-m", "hybridlm", "--version") == f"hybridlm {hybridlm.__version__}\n"


def test_help_needs_nothing():
    """Half a second, of which torch alone would take more."""
    code = "import sys; from hybridlm.cli import main; main(['--help']); print('LOADED', *sys.modules)"
    start = time.perf_counter()
    loaded = fresh("-c", code).rpartition("LOADED")[2].split()
    assert time.perf_counter() - start < 2  # under the load of a whole test run
    assert not {"torch", "lightning", "matplotlib", "jsonargparse", "rich", "omegaconf"} & set(loaded)


def test_describe_needs_torch_alone():
    code = (
        "import sys; from hybridlm.cli import main; main(['describe', 'MA', '--json']); print('LOADED', *sys.modules)"
    )
    loaded = set(fresh("-c", code).rpartition("LOADED")[2].split())
    assert "torch" in loaded
    assert not {"lightning", "lightning_fabric", "matplotlib", "transformers", "tokenizers", "triton"} & loaded


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_overview_names_every_command(run, argv):
    code, out, _ = run(*argv)
    assert code == 0
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    assert callable(COMMANDS[name].load())


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.example])
def test_help_has_an_example(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"usage: hybridlm {name}" in out
    assert f"example: {COMMANDS[name].example}" in " ".join(out.split())


MISTAKES = {
    ("descrbe", "M"): "unknown command 'descrbe'; commands: fit, .* Did you mean 'describe'?",
    ("describe",): "missing: model; see hybridlm describe --help",
    ("describe", "M", "--d-modle", "3"): r"unknown argument '--d-modle'\. Did you mean '--d-model'\?",
    ("describe", "M", "more"): "unknown argument 'more'",
    ("describe", "M", "--d-model", "wide"): "--d-model: 'wide' is not an integer",
    ("describe", "M", "--d-model"): "--d-model: expected one argument",
    ("describe", "M", "--d-model", "0"): "d_model: 0 is out of range",
    ("describe", "M", "--dtype", "int8"): "--dtype: 'int8' is not one of float32, bfloat16, float16, float64",
    ("doctor", "M", "--dtype", "int8"): "--dtype: 'int8' is not one of float32, bfloat16, float16",
    ("describe", "M", "--context", "1k"): "--context: '1k'; it must be lengths with commas",
    ("describe", "M", "--context", ""): "--context: ''; it must be lengths with commas",
    ("describe", "M", "--context", "0"): "--context: 0 is out of range",
    ("describe", "M", "--context", "²"): "--context: '²'; it must be lengths",
    ("describe", "M", "--batch", "0"): "--batch: 0 is out of range",
    ("describe", "M", "--plot", "x.pdf"): r"x\.pdf: a picture is written as \.svg or \.png, not as \.pdf",
    ("describe", "M", "--plot", "nowhere/x.svg"): "the folder nowhere does not exist",
    ("describe", "(M3X)2"): "pattern: .* unknown block 'X'",
    ("describe", "M{d_stat: 3}"): "d_stat: unknown field; did you mean '?d_state",
    ("describe", "missing.yaml"): r"missing\.yaml: no such file\. Shipped models: .*tiny",
    ("describe", "configs/models/tinny.yaml"): r"no such file\. Did you mean 'tiny(.yaml)?'",
    ("describe", "M[lstm]"): r"unknown block 'lstm'; defined here: (?!(.|\n)*Shipped)",
    ("describe", "tinny"): r"unknown block 't'.*Did you mean 'tiny'\?",
    ("describe", "docs"): "docs: a folder that holds no saved model",
    ("doctor", "M", "--jsn"): "unknown argument '--jsn'. Did you mean '--json'?",
    ("generate", "nowhere"): "nowhere|prompt",
    ("generate", "README.md", "--prompt", "a"): r"README\.md: a file; give a folder, of a run or of a saved model",
    ("report", "README.md"): r"README\.md: a file; give the folder of a study",
    ("report", "docs"): r"docs: no study\.yaml in it",
    ("ablate", "recal-rescue"): r"recal-rescue: no such file here .* Did you mean 'studies/recall-rescue\.yaml'",
    ("export", "nowhere", "out", "--to", "lama"): r"--to: 'lama'; it must be one of auto, .* Did you mean 'llama'\?",
    ("export", "nowhere", "out", "--dtype", "int8"): "--dtype: 'int8' is not one of float32, bfloat16, float16",
    ("export", "nowhere", "out", "--max-length", "0"): "--max-length: 0 is out of range",
    ("import", "nowhere", "out"): "nowhere: no such folder",
    ("tokenize", "--vocab-size", "3"): "vocab_size: 3; at least 257",
    ("tokenize", "--vocab-size", "99999999999"): "vocab_size: 99999999999 is out of range",
    ("describe", "M", "--plot", ""): r"a picture is written as \.svg or \.png",
    ("tokenize", "--output", "docs"): "output: docs is a folder",
}


@pytest.mark.parametrize("argv", MISTAKES, ids=" ".join)
def test_mistakes_are_told_in_one_message(run, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert re.search(MISTAKES[argv], err), err
    assert "usage:" not in err
    assert "Traceback" not in err


def test_caret_stays_under_its_place(capsys):
    main(["describe", "M" * 70 + "X"])
    lines = capsys.readouterr().err.splitlines()
    caret = next(i for i, line in enumerate(lines) if "^" in line)
    assert lines[caret].index("^") == lines[caret - 1].index("X")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("HYBRIDLM_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["descrbe"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (DataError("no data"), 2, "no data"),
        (PermissionError(13, "Permission denied", "here.txt"), 2, "here.txt: Permission denied"),
        (SystemExit(None), 0, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_exit_codes(run, monkeypatch, error, code, said):
    def fail(self):
        raise error

    monkeypatch.setattr(cli.Command, "load", fail)
    found, _, err = run("mixers")
    assert found == code
    assert said in err


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli.Command, "load", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["mixers"])


def test_training_gets_the_whole_line(monkeypatch):
    seen = []
    monkeypatch.setattr(cli.Command, "load", lambda self: seen.append)
    assert main(["fit", "--config", "x.yaml"]) == 0
    assert seen == [["fit", "--config", "x.yaml"]]


# -------------------------------------------------------------------------------------------------------------- parser
def command(first: str, texts: list[str] | None = None, top_k: int = 3, scale: float | None = None, on: bool = False):
    """What it does.

    Args:
        first: the first
        texts: several
    """
    return first, texts, top_k, scale, on


def test_functions_become_commands(capsys):
    def read(*argv):
        return call(command, argv, name="command", example="no")

    assert read("a") == ("a", None, 3, None, False)
    assert read("1", "--texts", "x ", "y", "--texts", "z", "--on") == ("1", ["x ", "y", "z"], 3, None, True)
    assert read("a", "--top_k=4", "--scale", "1e-3") == read("a", "--top-k", "4", "--scale", "0.001")
    with pytest.raises(SystemExit):
        read("--help")
    assert "several" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ describe
def test_describe_json(run):
    code, out, _ = run("describe", "(M3A)12", "--d-model", "1024", "--context", "2048,131072", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["layers"] == 48
    assert list(said["at"]) == ["2048", "131072"]
    assert said["at"]["131072"]["all_attention_bytes"] == 48 * 131072 * 2 * 1024 * 4


MORE = [["describe", "M", "--json"], ["mixers"], ["schema"]]


@pytest.mark.parametrize(
    "argv",
    [["describe", "M"], ["--help"], *(pytest.param(argv, marks=pytest.mark.deep) for argv in MORE)],
    ids=" ".join,
)
def test_a_reader_may_leave(argv):
    reads, writes = os.pipe()
    os.close(reads)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "hybridlm", *argv], stdout=writes, stderr=subprocess.PIPE, env=env)
    assert (done.returncode, done.stderr) == (0, b"")


def test_describe_tables(run):
    code, out, _ = run("describe", "(S3<A|W>)2 A@x2 -", "--context", "1000", "--batch", "2", "--dtype", "bfloat16")
    assert code == 0
    for text in (
        "(S3<A|W>)2A@x2-",
        "positions: NoPE",
        "attention | ",
        "0-2, 4-6",
        "At context 1,000",
        "2 x bfloat16",
        "total",
    ):
        assert text in out, text


def test_describe_says_what_it_can_be_exported_as(run):
    said = run("describe", "(M3A)2")[1]
    assert re.search("exportable as: (.*, )?granite_hybrid", said)
    assert "not as " in said
    about = json.loads(run("describe", "(M3A)2", "--json")[1])["export"]
    assert "granite_hybrid" in about["as"]
    assert about["misfits"]["llama"] == ["M: mixer mamba2; known there: attention"]
    assert not set(about["as"]) & set(about["misfits"])


def test_describe_names_the_family_that_wants_the_fewest_other_layers(run):
    """The fields of one that has these layers are nearer than the layers of another."""
    said = run("describe", "M{gated_norm: false}A")[1]
    assert "exportable as: remote-code alone, as none of the families" in said
    assert "not as granite_hybrid: M{gated_norm: false}: mamba2.gated_norm: false" in said


def test_describe_of_what_is_no_language_model(run):
    assert "no language model" in run("describe", "signals")[1]
    assert json.loads(run("describe", "signals", "--json")[1])["export"] == {"as": [], "nearest": None, "misfits": {}}


def test_describe_draws(run, tmp_path):
    file = tmp_path / "stack.svg"
    code, _, err = run("describe", "MA", "--plot", str(file))
    assert code == 0
    assert file.read_text().startswith("<?xml")
    assert str(file) in err


def test_describe_reads_files_names_and_folders(run, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("d_model: 64\nvocab_size: 99\npattern: MA\n")
    wanted = json.loads(run("describe", "MA", "--d-model", "64", "--vocab-size", "99", "--json")[1])
    assert json.loads(run("describe", str(file), "--json")[1]) == wanted
    assert json.loads(run("describe", str(file), "--d-model", "32", "--json")[1])["d_model"] == 32
    hybridlm.save(hybridlm.build(str(file)), tmp_path / "run" / "model")
    assert json.loads(run("describe", str(tmp_path / "run"), "--json")[1]) == wanted
    assert json.loads(run("describe", "tiny", "--json")[1]) == json.loads(
        run("describe", "configs/models/tiny", "--json")[1]
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "M").mkdir()  # a folder that is no model does not hide a pattern
    assert json.loads(run("describe", "M", "--json")[1])["pattern"] == "M"


def test_a_folder_with_the_name_of_a_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").mkdir()
    code, _, err = run("describe", "model.yaml")
    assert code == 2
    assert "model.yaml: a folder that holds no saved model and no run" in err


def test_a_damaged_folder_is_told(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    code, _, err = run("describe", str(tmp_path))
    assert code == 2
    assert "holds no spec" in err


def test_shipped_models_are_found():
    assert model_path("tiny") == resources.config_path("models/tiny")
    assert model_path("(M3A)2") is None


def test_readable_numbers():
    assert [readable_count(n) for n in (0, 999, 1000, 12_345, 1.5e9)] == ["0", "999", "1.00k", "12.3k", "1.50G"]
    assert [readable_bytes(n) for n in (1, 1024, 10 * 2**20, 999 * 2**30)] == ["1 B", "1.00 KiB", "10.0 MiB", "999 GiB"]
    assert where([0, 1, 2, 5]) == "0-2, 5"
    assert where([0, 2, 4, 6, 7]) == "0, 2, ... 6-7"


# -------------------------------------------------------------------------------------------------------------- mixers
def test_mixers_are_listed(run):
    code, out, _ = run("mixers")
    assert code == 0
    assert all(name in out for name in mixers.names())
    rows = {row["name"]: row for row in json.loads(run("mixers", "--json")[1])}
    attention, window, mamba2 = rows["attention"], rows["sliding_window"], rows["mamba2"]
    assert (attention["letter"], attention["recurrent"], attention["state"], attention["rolls_back"]) == (
        "A",
        False,
        "grows",
        True,
    )
    assert (window["letter"], window["state"], mamba2["state"]) == ("W", "bounded", "bounded")
    assert mamba2["recurrent"]
    assert rows["swiglu"]["kind"] == "mlp"
    assert all(row["error"] is None and row["summary"] for row in rows.values())


def test_a_broken_mixer_is_named_and_hides_nothing(run):
    @mixers.register("half_done")
    class HalfDone:
        """Nothing yet."""

    try:
        rows = {row["name"]: row for row in catalogue()}
        code, out, _ = run("mixers")
    finally:
        mixers.unregister("half_done")
    assert code == 0
    assert "it does not keep the contract" in rows["half_done"]["error"]
    assert "half_done" in out
    assert rows["attention"]["error"] is None


# -------------------------------------------------------------------------------------------------------------- schema
def fits(schema: dict, value, root: dict) -> bool:
    """The part of JSON Schema that the model's schema uses."""
    if "$ref" in schema:
        return fits(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema and not any(fits(option, value, root) for option in schema["anyOf"]):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value if isinstance(value, str) else ""):
        return False
    kinds = schema.get("type", [])
    if kinds and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, dict) and kinds == "object":
        if any(name not in value for name in schema.get("required", [])):
            return False
        rest = schema.get("additionalProperties", True)
        inner = {name: schema.get("properties", {}).get(name, rest) for name in value}
        return all(
            part is not False and (part is True or fits(part, value[name], root)) for name, part in inner.items()
        )
    return True


def _is(value, name: str) -> bool:
    kinds = {"integer": int, "number": (int, float), "string": str, "object": dict, "array": list, "boolean": bool}
    if name == "null":
        return value is None
    return isinstance(value, kinds[name]) and (name == "boolean" or not isinstance(value, bool))


@pytest.mark.parametrize("name", [name for name in resources.config_names() if name.startswith("models/")])
def test_schema_accepts_what_is_shipped(name):
    import yaml

    schema = model_schema()
    assert fits(schema, yaml.safe_load(resources.config_path(name).read_text()), schema)


@pytest.mark.parametrize(
    ("change", "legal"),
    [
        ({}, True),
        ({"mlp": "gelu"}, True),
        ({"mlp": {"type": "gelu", "width": "${d_model}"}}, True),
        ({"mlp": {"type": "gelu", "widht": 3}}, False),
        ({"mlp": "gleu"}, False),
        ({"d_model": "wide"}, False),
        ({"d_model": True}, False),
        ({"dmodel": 3}, False),
        ({"norm": "batchnorm"}, False),
        ({"blocks": {"M": {"mixer": {"type": "mamba2", "d_state": 8}, "mlp": "none"}}}, True),
        ({"blocks": {"M": {"mixer": {"type": "mamba2", "d_stat": 8}}}}, False),
        ({"blocks": {"M": {"mixer": {"d_state": 8}}}}, False),
        ({"blocks": {"M": {"mixer": "attention", "norm": 1}}}, False),
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": None, "rope": False}}}}, True),
        ({"embed": "tokens", "head": {"type": "lm"}}, True),
        ({"embed": {"type": "linear", "channels": 3}}, True),
        ({"embed": "linear"}, False),
        ({"head": {"type": "classify", "classes": 3, "pool": "last"}}, True),
        ({"head": {"type": "classify", "classes": 3, "pool": "max"}}, False),
        ({"head": {"type": "classify", "clases": 3}}, False),
        ({"head": {"type": "regress"}}, False),
    ],
)
def test_schema_tells_right_from_wrong(change, legal):
    schema = model_schema()
    assert fits(schema, {"d_model": 64, "vocab_size": 9, "pattern": "M", **change}, schema) is legal


def test_schema_describes_every_field(run):
    schema = json.loads(run("schema")[1])
    assert schema["required"] == ["d_model", "pattern"]
    assert [option["required"] for option in schema["anyOf"]] == [["vocab_size"], ["embed", "head"]]
    assert {f"mixer.{name}" for name in mixers.names()} <= set(schema["$defs"])
    fields = dict(schema["properties"])
    for part, definition in schema["$defs"].items():
        fields |= {
            f"{part}.{name}": field for name, field in definition.get("properties", {}).items() if name != "type"
        }
    undescribed = [
        name for name, field in fields.items() if not field.get("description") and not name.startswith("block.")
    ]
    assert undescribed == []
    assert fields["mixer.mamba2.d_conv"]["default"] == 4
