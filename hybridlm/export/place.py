"""Where an export goes, and the record that it leaves there: nothing of a user's is overwritten or deleted.

The record is export.json: {format: 1, target, proof: {errors, limit, tokens}, versions: of what compared,
files: {name: {sha256, bytes}} of everything else in the folder}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridlm.errors import ExportError
from hybridlm.files import STAGING, sha256

RECORD = "export.json"
FORMAT = 1


def require_place(out: Path, source: Path, overwrite: bool = False) -> list[str]:
    """The names of an earlier export's files in `out`, which may be replaced; none, where nothing is there.

    source: the folder that is read. ExportError: `out` holds anything else, or lies in `source`.
    """
    here, there = out.resolve(), source.resolve()
    if here == there or there in here.parents:
        raise ExportError(f"{out}: it lies in {source}, which is read; an export stands beside what it was made of")
    if out.is_symlink() and not out.exists():
        raise ExportError(f"{out}: a link that leads nowhere; give another place")
    if not out.exists():
        return []
    if not out.is_dir():
        raise ExportError(f"{out}: a file; an export is a folder: give another name")
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith(STAGING))
    return _replaceable(out, found, overwrite) if found else []


def require_empty(out: Path, source: Path) -> None:
    """ExportError unless `out` is a new folder or an empty one, and not in `source`, which is read."""
    if out.is_dir() and read_record(out) is not None:
        raise ExportError(f"{out}: it holds an export; give a new folder, or an empty one")
    require_place(out, source)


def _replaceable(out: Path, found: list[str], overwrite: bool) -> list[str]:
    """`found`, if it is an export to the last byte, and may go."""
    record = read_record(out)
    if record is None:
        raise ExportError(f"{out}: it holds other things ({_some(found)}); give a new folder, or an empty one")
    if not overwrite:
        raise ExportError(f"{out}: it holds an earlier export ({record['target']}); --overwrite replaces it")
    files = record["files"]
    others = [name for name in found if name not in files and name != RECORD]
    if others:
        raise ExportError(f"{out}: beside the earlier export it holds {_some(others)}; move that away, or export anew")
    changed = [name for name in found if name in files and sha256(out / name) != files[name]["sha256"]]
    if changed:
        raise ExportError(
            f"{out}: changed since it was exported: {_some(changed)}; move that away, or export into a new folder"
        )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What an export's record says; None where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names, target = list(record["files"]), record["target"]
        sums = [entry["sha256"] for entry in record["files"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if all(isinstance(word, str) for word in (*names, *sums, target)) else None


def write_record(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the record of a folder that is otherwise finished. about: what it says besides format and files."""
    paths = sorted(path for path in folder.iterdir() if path.name != RECORD)
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths}
    record = {"format": FORMAT, **about, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
