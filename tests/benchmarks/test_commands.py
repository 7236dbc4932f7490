"""Every command runs on a CPU without any peer at small sizes and leaves its files; a failure is a row, not an end."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS, main
from benchmarks.contenders import falling_back
from benchmarks.contest import Entry
from benchmarks.machine import Ceilings, ceilings
from benchmarks.rows import Row

TINY = ["--pattern", "MA", "--d-model", "32", "--d-state", "8", "--head-dim", "16", "--vocab-size", "64"]
QUICK = ["--device", "cpu", "--rounds", "2", "--calls", "1", "--warmup", "1"]
CALLS = {
    "train": [*TINY, "--shapes", "2x32"],
    "decode": [*TINY, "--batches", "1", "--prompt", "16", "--new", "4"],
    "prefill": [*TINY, "--batches", "2", "--prompt", "32"],
    "ops": ["--ops", "ssd,attention,norm", "--lengths", "64", "--tokens", "64", "--backends", "reference"],
    "ratios": [
        *["--lengths", "64,128", "--tokens", "128", "--backends", "reference", "--d-model", "32", "--layers", "1"],
        *["--vocab-size", "64", "--prompt", "8", "--new", "2", "--first", "2", "--time-limit", "30"],
    ],
    "twins": [*TINY, "--batch", "1", "--length", "32", "--prompt", "32", "--new", "2", "--threads", "1"],
    "zoo": ["M", "--d-model", "32", "--tokens", "16", "--decode", "2", "--batch", "1"],
}


def run(command: str, folder: Path, *more: str) -> dict:
    """The JSON that a run leaves."""
    assert main([command, *CALLS[command], *QUICK, "--out", str(folder), *more]) == 0
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The ceilings of the machine are not what most tests are about, nor are large batches."""
    monkeypatch.setattr("benchmarks.whole.DOUBLINGS", 2)
    monkeypatch.setattr("benchmarks.run.ceilings", lambda device: Ceilings(1e11, 1e10, "float32"))


LIMITS = {"train": 1e-5, "prefill": 1e-5, "ops": 1e-5, "twins": 1e-5, "decode": 1e-4}


@pytest.mark.parametrize("command", CALLS)
def test_runs_without_a_peer(command, tmp_path):
    """Files, times and errors: those of float32."""
    about = run(command, tmp_path)
    if command in LIMITS:
        assert all(0 <= row["error"] < LIMITS[command] for row in about["rows"] if row.get("median_ms")), about["rows"]
    assert all(row.get("median_ms", 0) > 0 or row["why"] for row in about["rows"]), about["rows"]
    assert all(row.get("median_ms", 0) > 0 for row in about["rows"] if row["ours"]), about["rows"]
    assert about["command_line"].startswith(f"python -m benchmarks {command}")
    assert about["machine"]["packages"]["torch"]
    assert about["ceilings"]["flops"] > 1e8
    with (tmp_path / "result.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(about["rows"])
    assert (tmp_path / "result.png").stat().st_size > 1000


def test_a_peer_that_cannot_take_part_says_why(tmp_path, capsys):
    rows = {row["contender"]: row for row in run("train", tmp_path, "--peer", "fla")["rows"]}
    assert rows["hybridlm"]["median_ms"] > 0
    assert "median_ms" not in rows["fla"]
    assert "fla" in rows["fla"]["why"]
    assert "not measured: fla" in capsys.readouterr().out


def test_what_cannot_run_here_falls_back_with_the_reason():
    def ours(path: str) -> Entry:
        if path != "eager":
            raise NotImplementedError(f"no {path} here")
        return Entry(print)

    assert falling_back(ours, "graph").notes == [
        "not graph: NotImplementedError: no graph here",
        "not compile: NotImplementedError: no compile here",
    ]


def test_time_limit_ends_a_run_in_order(tmp_path):
    code = main(["train", *CALLS["train"], *QUICK, "--out", str(tmp_path), "--time-limit", "0.001"])
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert code == 1
    assert row["why"] == "the time limit came first"


def test_what_measures_nothing_leaves_an_earlier_run(tmp_path, capsys):
    before = run("zoo", tmp_path)
    assert main(["zoo", "Q", *QUICK, "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "result.json").read_text()) == before
    assert "holds an earlier run, which stays" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["train", "--peer", "keras"],
            "--peer: unknown keras; known: mamba_ssm, transformers, transformers_shipped, fla",
        ),
        (["train", "--ours", "fast"], "--ours: unknown fast; known: eager, compile, graph"),
        (["train", "--shapes", "2by3"], "--shapes: '2by3'; it takes batch x length"),
        (["decode", "--batches", "1,x"], "--batches: x; it takes whole numbers"),
        (["prefill", "--batches", "0"], "--batches: 0; it takes whole numbers"),
        (["twins", "--cases", "sleep"], "--cases: unknown sleep"),
        (["ops", "--lengths", "-1"], "--lengths: -1; it takes whole numbers"),
        (["ops", "--backends", "cuda"], "--backends: unknown cuda; known: auto, reference, triton, vendor"),
        (["ratios", "--peer", "keras"], "--peer: unknown keras"),
        (["zoo", "--tokens", "0"], "--tokens: 0 is out of range"),
        (["zoo", "--rounds", "0"], "--rounds: 0 is out of range"),
        (["zoo", "--warmup", "-1"], "--warmup: -1 is out of range"),
        (["kit", "--jobs", "-1"], "--jobs: -1 is out of range"),
        (["zoo", "--budget", "nan"], "--budget: nan is not a finite number"),
        (["zoo", "--time-limit", "-3"], "--time-limit: -3.0 is out of range"),
        (["zoo", "--device", "none"], "device: 'none' is not there"),
        (["zoo", "--out", __file__], "test_commands.py is a file; give a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_told_before_anything_is_built(monkeypatch, capsys, options, said):
    monkeypatch.setattr("benchmarks.run.Run.__init__", None)
    assert main(options) == 2
    assert said in capsys.readouterr().err


def test_a_report_names_the_file_that_it_cannot_read(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("# Notes")
    assert main(["report", str(tmp_path / "notes.md")]) == 2
    assert "notes.md: no result.json of a run" in capsys.readouterr().err


def test_an_op_without_the_backends_asked_for_is_timed_plain(tmp_path):
    options = ["--ops", "long_conv", "--lengths", "64", "--tokens", "64", "--forward-only", "--out", str(tmp_path)]
    assert main(["ops", *options, *QUICK]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == ["hybridlm reference"]  # no row of a backend that there is not


def test_an_op_may_have_a_length_of_its_own(tmp_path):
    options = ["--ops", "attention,ssd:32,loss", "--lengths", "64", "--tokens", "64", "--backends", "reference"]
    assert main(["ops", *options, *QUICK, "--forward-only", "--out", str(tmp_path)]) == 0
    rows = [row for row in json.loads((tmp_path / "result.json").read_text())["rows"] if row["ours"]]
    assert [row["case"].split(", ")[1] for row in rows if row["error"] < 1e-5][:-1] == ["L=64", "L=64", "L=32"]
    assert {"took vendor"} <= {note for row in rows for note in row["notes"]}
    assert main(["ops", "--ops", "ssd:long", *QUICK]) == 2


def test_a_command_has_defaults_of_its_own(monkeypatch):
    seen = {}
    monkeypatch.setattr("benchmarks.twins.main", lambda args: seen.update(vars(args)) or 0)
    assert main(["twins"]) == 0
    assert (seen["device"], seen["rounds"], seen["calls"]) == ("cpu", 5, 2)


def test_twins_are_of_a_cpu(capsys):
    assert main(["twins", "--device", "cuda"]) == 2
    assert "timed on a CPU" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert re.search(rf"example:\n  .*python -m benchmarks {command}", capsys.readouterr().out)


def test_report_writes_a_section_and_leaves_the_others(tmp_path):
    run("zoo", tmp_path / "run")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- train -->\nold\n<!-- end of train -->\n<!-- zoo -->\nold\n<!-- end of zoo -->\nz\n")
    assert main(["report", str(tmp_path / "run"), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("a\n<!-- train -->\nold\n<!-- end of train -->\n")
    assert text.endswith("<!-- end of zoo -->\nz\n")
    assert "| M | training (hybridlm) |" in text
    assert "python -m benchmarks zoo M" in text


def test_the_readme_has_a_place_for_every_command():
    text = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text()
    for command in set(COMMANDS) - {"report"}:
        assert f"<!-- {command} -->" in text
        assert f"<!-- end of {command} -->" in text


def test_ceilings_are_measured():
    found = ceilings("cpu")
    assert found.flops > 1e9
    assert found.bytes > 1e8
    assert found.floor(2 * found.flops, found.bytes) == 2.0


def test_what_was_measured_is_shown_when_a_run_breaks(tmp_path, monkeypatch, capsys):
    def broken(run, args, *rest):
        run.add(Row("case", "x", seconds=[0.25]))
        raise RuntimeError("broken")

    monkeypatch.setattr("benchmarks.ratios.training", broken)
    options = [*CALLS["ratios"], *QUICK, "--parts", "training", "--out", str(tmp_path)]
    assert main(["ratios", *options]) == 1
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["median_ms"] == 250
    assert "RuntimeError: broken" in capsys.readouterr().err
