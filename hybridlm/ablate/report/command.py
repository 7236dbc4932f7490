"""`hybridlm report`: the report of a study from the results that its folder holds by now."""

from __future__ import annotations

import sys
from pathlib import Path

from hybridlm.errors import DataError

STUDY = "study.yaml"


def report(study: str, to: str | None = None) -> None:
    """Write report.html, report.md, results.csv, results.jsonl and figures/ of a study, whatever has finished by now.

    Args:
        study: the study's folder, such as runs/studies/recall-rescue.
        to: folder to write to; by default report/ in the study's.
    """
    from hybridlm.ablate.report import write
    from hybridlm.ablate.results import load
    from hybridlm.ablate.study import Study

    folder = Path(study)
    place = Path(to) if to is not None else folder / "report"
    if not (folder / STUDY).is_file():
        found = "a file" if folder.is_file() else f"no {STUDY} in it"
        raise DataError(f"{folder}: {found}; give the folder of a study, such as runs/studies/NAME")
    if place.exists() and not place.is_dir():
        raise DataError(f"{place}: a file; a report is a folder: give another --to")
    results = load(Study.read(folder / STUDY, has_run=True), folder)
    page = write(results, place)
    done, total = len(results.table), len(results.table) + len(results.missing)
    print(f"{done} of {total} trials have a result", file=sys.stderr)
    print(page)
