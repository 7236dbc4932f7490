"""Checkpoints that a study has left behind: of learning rates, seeds, models that it no longer has."""

from __future__ import annotations

import json
from pathlib import Path

from hybridlm.ablate.job import ABOUT, CHECKPOINTS, PACKS
from hybridlm.ablate.results import RESULT, trial_folder
from hybridlm.ablate.trial import clear, held
from hybridlm.compose.memory import readable_bytes

MOST = 3
"""Packs that are named."""


def clear_leftover(folder: Path) -> str | None:
    """Remove the checkpoints whose every trial has a result, which another packing found, say.

    Work that has no result yet stays, as the study may have it again; so does what another runner holds, and what does
    not say whose it is. Returns a line with where such work lies; None: there is none.
    """
    kept = []
    for checkpoints in sorted((folder / PACKS).glob(f"*/{CHECKPOINTS}")):
        name, keys = _about(checkpoints.parent)
        with held(folder, keys) as ours:
            if not keys or not ours:
                continue
            if all((trial_folder(folder, key) / RESULT).is_file() for key in keys):
                clear(checkpoints.parent)
            else:
                kept.append(f"{name}, {readable_bytes(_size(checkpoints))} in {checkpoints}")
    more = f" and {len(kept) - MOST} more" if len(kept) > MOST else ""
    said = "checkpoints of what the study no longer has; it goes on with them if it has that again, else remove them"
    return f"{said}: {'; '.join(kept[:MOST])}{more}" if kept else None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _about(place: Path) -> tuple[str, list[str]]:
    """A pack in words, and the keys of its trials; none, where it does not say."""
    try:
        about = json.loads((place / ABOUT).read_bytes())
        name, keys = str(about["pack"]), [str(key) for key in about["trials"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    return (name, keys) if all(key.isalnum() for key in keys) else ("", [])
