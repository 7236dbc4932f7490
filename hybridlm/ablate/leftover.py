"""Checkpoints that a study has left behind: of learning rates, seeds, models that it no longer has."""

from __future__ import annotations

import json
from pathlib import Path

from hybridlm.ablate.job import ABOUT, CHECKPOINTS, PACKS
from hybridlm.ablate.results import RESULT, trial_folder
from hybridlm.ablate.trial import clear, held

MOST = 3
"""Packs that are named."""


def clear_leftover(folder: Path) -> str | None:
    """Remove the checkpoints that are left in the folder of a study whose every trial has a result.

    They are of packs that the study no longer has, or whose results another packing found. What another runner holds
    stays, and so does what does not say whose it is. Returns a line with what could have been gone on with; None:
    nothing could.
    """
    lost = []
    for checkpoints in sorted((folder / PACKS).glob(f"*/{CHECKPOINTS}")):
        name, keys = _about(checkpoints.parent)
        with held(folder, keys) as ours:
            if not keys or not ours:
                continue
            if not all((trial_folder(folder, key) / RESULT).is_file() for key in keys):
                lost.append(name)
            clear(checkpoints.parent)
    more = f" and {len(lost) - MOST} more" if len(lost) > MOST else ""
    said = f"checkpoints of what the study no longer has, which would begin anew: {'; '.join(lost[:MOST])}{more}"
    return said if lost else None


def _about(place: Path) -> tuple[str, list[str]]:
    """A pack in words, and the keys of its trials; none, where it does not say."""
    try:
        about = json.loads((place / ABOUT).read_bytes())
        name, keys = str(about["pack"]), [str(key) for key in about["trials"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    return (name, keys) if all(key.isalnum() for key in keys) else ("", [])
