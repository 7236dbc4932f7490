"""The committed reports of studies: whole, of studies that ship, and their verdicts as the overview has them."""

import csv
import re
from pathlib import Path

import pytest

from hybridlm.ablate.study import Study
from hybridlm.resources import config_path

FOLDER = Path(__file__).parents[1] / "docs/studies"
NAMES = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
WORDS = ("supported", "refuted", "undetermined")


def headline(name: str) -> dict[str, int]:
    """{verdict: how many claims have it} of a report."""
    said = re.search(r"^\*\*\d+ claims?: (.*)\.\*\*$", (FOLDER / name / "report.md").read_text(), re.M)[1]
    return counts(said)


def counts(text: str) -> dict[str, int]:
    """{verdict: the number before it}."""
    return {word: int(count) for count, word in re.findall(rf"(\d+) ({'|'.join(WORDS)})", text)}


def test_some_studies_were_run():
    assert {"recall-rescue", "state-size-ladder", "state-tracking"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_whole(name):
    """Every figure that it shows is there and no other; the page asks nothing of a network; every trial has a line."""
    text = (FOLDER / name / "report.md").read_text()
    shown = set(re.findall(r"\]\(figures/([^)]+)\)", text))
    assert shown == {path.name for path in (FOLDER / name / "figures").iterdir()}
    page = (FOLDER / name / "report.html").read_text()
    assert "<script" not in page
    study = Study.read(config_path(f"studies/{name}"))
    rows = list(csv.DictReader((FOLDER / name / "results.csv").open(newline="")))
    found = sorted((row["arm"], row["seed"], float(row["lr"])) for row in rows)
    assert found == sorted((trial.arm.name, str(trial.seed), trial.lr) for trial in study.trials())
    assert {row["key"] for row in rows} == {trial.key for trial in study.trials()}, "the study has changed since"


@pytest.mark.parametrize("name", NAMES)
def test_every_study_has_a_page(name):
    """With its report, its trials, its command and a picture that says in words what it shows; the menu leads to it."""
    text = (FOLDER / name / "index.md").read_text()
    for part in ("](report.md)", "](report.html)", "](results.csv)", f"`hybridlm ablate {name}"):
        assert part in text
    assert re.search(r"!\[[^\]]{20,}\]\(figures/", text)
    menu = (FOLDER.parents[1] / "mkdocs.yml").read_text()
    assert f": studies/{name}/index.md\n" in menu
    assert f": studies/{name}/report.md\n" in menu


@pytest.mark.parametrize("name", NAMES)
def test_the_overview_has_the_verdicts_of_the_report(name):
    text = (FOLDER / "index.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| [{name}]")]
    assert counts(line) == headline(name)
    claims = text[text.index("## Claim by claim") : text.index("## Beside")]
    rows = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in claims.splitlines() if row[:1] == "|"]
    start = next(i for i, row in enumerate(rows) if row[0] == name)
    mine = [rows[start], *_until_named(rows[start + 1 :])]
    report = (FOLDER / name / "report.md").read_text()
    for _, claim, verdict, _ in mine:
        assert re.search(rf"^\| {re.escape(claim)} \| \*\*{verdict}\*\* \|", report, re.M), claim
    assert len(mine) == sum(headline(name).values())


def test_the_overview_counts_them():
    """All verdicts together, as its first paragraph has them."""
    every = [headline(name) for name in NAMES]
    total = {word: sum(each.get(word, 0) for each in every) for word in WORDS}
    first = (FOLDER / "index.md").read_text().partition("| study |")[0]
    assert counts(first) == total
    assert f"{sum(total.values())} claims: " in first


def _until_named(rows: list[list[str]]) -> list[list[str]]:
    """Rows up to the next one that begins a study."""
    count = next((i for i, row in enumerate(rows) if row[0]), len(rows))
    return rows[:count]


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6
