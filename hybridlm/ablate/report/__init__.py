"""The report of a study: report.html, report.md, results.csv, results.jsonl and figures/, from what its trials found.

    write(results, folder)        # or `hybridlm report STUDY_FOLDER`

What is said of a study is put together once (`blocks.Document`), then written as a page that needs no network and no
script, and as Markdown. A section without data is left out, and the report says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results

PAGE, TEXT = "report.html", "report.md"


def write(results: Results, folder: str | Path) -> Path:
    """Write the whole report into `folder`, which is made, and return the path of report.html.

    Files are replaced one by one, atomically; figures of an earlier report that are no longer in it are removed.
    OSError: a full disk, say.
    """
    from hybridlm.ablate.report.compile import document
    from hybridlm.ablate.report.figures import render
    from hybridlm.ablate.report.html import page
    from hybridlm.ablate.report.markdown import text
    from hybridlm.ablate.report.rows import csv_text, jsonl_text
    from hybridlm.files import atomic_write

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = document(results)
    pictures = render(found.charts, folder / "figures")
    for name, said in {
        "results.csv": csv_text(results),
        "results.jsonl": jsonl_text(results),
        TEXT: text(found),
        PAGE: page(found, pictures),
    }.items():
        atomic_write(folder / name, said.encode(errors="backslashreplace"))  # YAML can name half a character
    return folder / PAGE
