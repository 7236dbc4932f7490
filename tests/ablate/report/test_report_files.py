"""Figures, tables and Markdown beside the page: not blank, alone, and with every number as it was."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import synthetic
from matplotlib import image

from hybridlm.ablate.report import markdown
from hybridlm.ablate.report.blocks import Chart, Table
from hybridlm.ablate.report.command import report
from hybridlm.ablate.report.figures import draw, render
from hybridlm.ablate.report.rows import csv_text, jsonl_text
from hybridlm.ablate.study import Study
from hybridlm.errors import DataError, SpecError

NAMES = ("recall", "curves", "hostile")
EXPECTED = {
    "recall": [
        "curves",
        "front-cache",
        "front-flops",
        "quality-cache",
        "quality-layers",
        "quality-mixers",
        "rates",
        "steps",
    ],
    "curves": ["curves", "front-cache", "grid-0", "quality-cache", "quality-layers", "quality-mixers", "rates"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_exist(reports, name):
    figures = {path.name for path in (reports[name] / "figures").iterdir()}
    assert {f"{chart}.{suffix}" for chart in EXPECTED[name] for suffix in ("svg", "png")} <= figures
    assert {path.rsplit(".", 1)[0] for path in figures if path.endswith("svg")} == {
        path.rsplit(".", 1)[0] for path in figures if path.endswith("png")
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_pictures_are_not_blank(reports, name):
    """Ink below the title, in colour, on white paper."""
    for path in sorted((reports[name] / "figures").glob("*.png")):
        pixels = image.imread(path)[..., :3]
        below = pixels[pixels.shape[0] // 4 :]
        assert pixels.shape[1] >= 780
        assert 0.005 < (below.min(axis=2) < 0.9).mean() < 0.9, path.name
        assert (pixels[:3].min(axis=2) > 0.98).all(), path.name  # nothing runs over the upper edge
        assert (pixels[:, -2:].min(axis=2) > 0.98).all(), path.name
        assert (pixels[-2:].min(axis=2) > 0.98).all(), path.name
        assert np.ptp(below, axis=2).max() > 0.3, path.name


@pytest.mark.parametrize("name", NAMES)
def test_svg_files_are_alone(reports, name):
    for path in sorted((reports[name] / "figures").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert "<!DOCTYPE" not in text
        values = [value for element in root.iter() for value in element.attrib.values()]
        assert not [value for value in values if "://" in value], path.name
        assert "url(" not in "".join(element.text or "" for element in root.iter() if element.tag.endswith("}style"))
        links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
        links += re.findall(r"url\(([^)]*)\)", " ".join(values))
        ids = {f"#{element.get('id')}" for element in root.iter()}
        assert links
        assert set(links) <= ids
        titles = [element.text for element in root if element.tag.endswith("}title")]
        assert len(titles) == 1
        assert len(titles[0]) > 15


def test_colours_are_the_same_everywhere(results):
    """An arm has one look, whatever figure asks; eight arms have eight."""
    from hybridlm.ablate.report.facts import Facts
    from hybridlm.ablate.report.style import DARK, VARIABLES

    looks = Facts(results["recall"]).looks
    assert len({look.colour for look in looks.values()}) == 6
    families = Facts(results["curves"]).looks
    assert {look.label for look in families.values()} == {f"placement={place}" for place in synthetic.PLACEMENTS}
    assert len({look.colour for look in families.values()}) == len(synthetic.PLACEMENTS)
    assert set(VARIABLES) == set(DARK)


# Machado, Oliveira and Fernandes (2009), severity 1: what linear RGB becomes without one kind of cone.
VISIONS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


@pytest.mark.parametrize("screen", ["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart(screen, vision):
    """Any two are at least 15 apart in CIELAB, whoever looks; and 3 to 1 from the paper (WCAG 2.2, 1.4.11)."""
    from hybridlm.ablate.report.style import DARK, NAMED, PAPER

    colours = [_linear(colour if screen == "light" else DARK[colour]) for colour in NAMED]
    seen = np.array([_lab(np.array(VISIONS[vision]) @ colour) for colour in colours])
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e3 * np.eye(len(seen))
    assert apart.min() >= 15
    paper = (XYZ @ _linear(PAPER if screen == "light" else DARK[PAPER]))[1]
    for level in [(XYZ @ colour)[1] for colour in colours]:
        assert (max(level, paper) + 0.05) / (min(level, paper) + 0.05) >= 3


def _linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB at D65."""
    x = XYZ @ np.clip(linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_stale_figures_go(tmp_path):
    chart = Chart("one", "A title", "", "", lambda axes: axes.plot([1, 2]), Table("", [], []))
    (tmp_path / "old.svg").write_text("")
    (tmp_path / "old.png").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    render([chart], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "one.png", "one.svg"]


def test_a_figure_is_the_same_twice():
    chart = Chart("one", "A title", "", "", lambda axes: axes.plot([1, 2]), Table("", [], []))
    assert draw(chart) == draw(chart)


# --------------------------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("name", NAMES)
def test_csv_holds_every_digit(results, name):
    rows = list(csv.DictReader(io.StringIO(csv_text(results[name]), newline="")))
    table = results[name].table
    assert len(rows) == len(table)
    for row, found in zip(rows, table, strict=True):
        assert row["arm"] == found["arm"]
        assert float(row["loss"]) == found["loss"]
        assert float(row["lr"]) == found["lr"]
        assert row["solved_at"] == ("" if found["solved_at"] is None else str(found["solved_at"]))
    best = {(row["arm"], float(row["lr"])) for row in rows if row["best_lr"] == "1"}
    assert best == {(arm.name, results[name].best_lr(arm.name)) for arm in results[name].study.arms}


@pytest.mark.parametrize("name", NAMES)
def test_jsonl_holds_everything(results, name):
    rows = [json.loads(line) for line in jsonl_text(results[name]).splitlines()]
    for row, found in zip(rows, results[name].table, strict=True):
        assert {key: row[key] for key in found if key != "curve"} == {k: v for k, v in found.items() if k != "curve"}
        assert [tuple(point) for point in row["curve"]] == found["curve"]
    arm = results[name].study.arms[0]
    assert rows[0]["cost.params"] == arm.cost.params
    assert rows[0]["cost.residual"] == arm.residual


def test_numbers_that_are_none():
    """NaN is null in JSON and an empty field in CSV."""
    from dataclasses import replace

    made = synthetic.study([synthetic.arm("a", "M"), synthetic.arm("b", "A")], seeds=1, lr=(1e-3,))

    def found(*given):
        result = synthetic.solved_or_not(*given)
        return replace(result, final={**result.final, "loss": math.nan})

    held = synthetic.results(made, found)
    assert json.loads(jsonl_text(held).splitlines()[0])["loss"] is None
    assert next(csv.DictReader(io.StringIO(csv_text(held))))["loss"] == ""


# ----------------------------------------------------------------------------------------------------------- Markdown
@pytest.mark.parametrize("name", NAMES)
def test_markdown_names_figures_that_exist(reports, name):
    text = (reports[name] / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((figures/[\w.-]+)\)", text)
    assert len(named) >= 6
    assert all((reports[name] / path).is_file() for path in named)
    heads = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) >= 3 for line in heads)


@pytest.mark.parametrize(
    ("text", "said"), [("27.0%", "27.0%"), ("1. one", "1\\. one"), ("3.", "3\\."), ("a_b", "a\\_b"), ("- x", "\\- x")]
)
def test_markdown_escapes_what_means_something(text, said):
    assert markdown._text(text) == said


def test_markdown_escapes(reports):
    """Nothing of a hostile name is markup: no tag, no link, no cell of its own."""
    text = (reports["hostile"] / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<\w|</", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
    assert "](javascript" not in text.replace("\\]", "")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


# ------------------------------------------------------------------------------------------------------------ command
def test_command(tmp_path, monkeypatch, capsys):
    with pytest.raises(DataError, match=r"no study\.yaml in it"):
        report(str(tmp_path))
    made = synthetic.study([synthetic.arm("a", "M"), synthetic.arm("b", "A")], seeds=1, lr=(1e-3,))
    (tmp_path / "study.yaml").write_text("name: x\n")
    monkeypatch.setattr(Study, "read", lambda path, has_run: made)
    report(str(tmp_path))
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'report' / 'report.html'}\n"
    assert "0 of 2 trials have a result" in said.err
    report(str(tmp_path), to=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "report.md").is_file()
    with pytest.raises(DataError, match=r"study\.yaml: a file; a report is a folder"):
        report(str(tmp_path), to=str(tmp_path / "study.yaml"))


def test_a_report_needs_no_text_any_more(tmp_path):
    """The text that a study was trained on has been moved: a run would be refused, its results are read."""
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    base = {"d_model": 32, "vocab_size": 256, "pattern": "MM"}
    given = {"name": "moved", "question": "Where is it?", "baseline": base, "arms": {"a": {}}, "lr": [1e-3], "seeds": 1}
    given |= {"data": {"text": str(text), "context": 16}, "train": {"steps": 4, "batch_size": 2, "eval_every": 2}}
    study = Study.from_dict(given)
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    text.unlink()
    with pytest.raises(SpecError, match=r"a\.txt"):
        Study.read(tmp_path / "study.yaml")
    assert Study.read(tmp_path / "study.yaml", has_run=True) == study
    report(str(tmp_path), to=str(tmp_path / "out"))
    assert (tmp_path / "out/report.html").is_file()
