"""The kit's table: a cell a mixer and backend, in processes of its own, and a section of the README."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.kit import Task, cell
from hybridlm.testing.result import Result

TASK = Task("x", "auto", "float32", ("C1",))


def run(folder, *more: str) -> dict:
    options = [
        "--mixers",
        "short_conv",
        "--dtypes",
        "float32",
        "--laws",
        "C1,C13",
        "--device",
        "cpu",
        "--out",
        str(folder),
    ]
    assert main(["kit", *options, *more]) == 0
    return json.loads((folder / "result.json").read_text())


def test_a_mixer_has_a_cell_for_each_backend(tmp_path):
    about = run(tmp_path, "--jobs", "0", "--backends", "auto,vendor")
    assert about["titles"] == ["mixer", "auto, float32", "vendor, float32", "cases"]
    ((name, auto, vendor, _),) = about["lines"]
    assert (name, vendor) == ("short_conv", "-")
    assert 0 < float(auto.split()[0]) <= 1
    assert about["missing"] == []


def test_processes_find_the_same(tmp_path):
    plain, spread = run(tmp_path / "a", "--jobs", "0"), run(tmp_path / "b", "--jobs", "2")
    assert plain["lines"] == spread["lines"]


def test_its_table_goes_into_the_readme(tmp_path):
    run(tmp_path, "--jobs", "0")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- kit -->\nold\n<!-- end of kit -->\nz\n")
    assert main(["report", str(tmp_path), "--readme", str(readme)]) == 0
    assert "| short_conv | 0." in readme.read_text()
    assert "python -m benchmarks kit --mixers short_conv" in readme.read_text()


def result(law: str, error: float, verdict: str = "passed") -> Result:
    return Result(law, "case", error, error, 1.0, verdict)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([result("C1", 0.25), result("C2", 0.5)], "0.50 (C2)"),
        ([result("C1", 0.25), result("C2", 2.0, "failed"), result("C5", 3.0, "failed")], "2 broken: C2, C5"),
        ([result("C9", 0.0, "refused"), result("C1", 0.1)], "0.10 (C1)"),
        ("RuntimeError: no", "RuntimeError: no"),
    ],
)
def test_a_cell_is_the_worst(found, text):
    assert cell([(TASK, found)]) == text


def test_a_backend_without_the_mixer_is_a_dash():
    task = TASK._replace(backend="triton")
    assert cell([(task, [result("C15", 0.0, "refused")])]) == "-"
