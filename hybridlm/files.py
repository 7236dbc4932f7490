"""Files that are never half-written and never silently damaged: atomic writes, manifests of sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridlm.errors import CheckpointError, DataError

MANIFEST = "manifest.json"
STAGING = ".saving-"


def as_path(path: str | Path, error: type[ValueError] = CheckpointError) -> Path:
    """A path, or `error` for what cannot be one."""
    if not isinstance(path, str | os.PathLike):
        raise error(f"{path!r} is a {type(path).__name__}, not a path")
    return Path(path)


def check_target(name: str, path: str | Path, error: type[ValueError] = DataError) -> None:
    """`error` unless a file may be written at `path`: told before the work whose result it is to hold.

    name: of the argument, for the message.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{name}: {path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise error(f"{name}: {path}: its folder does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{name}: {path}: its folder cannot be written to")


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write data beside path, flush it to the disk, then rename: path holds the old content or the new, never a part.

    OSError as the system gives it (a full disk, say); path is then as it was, and the temporary file is gone.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # the temporary name says nothing to a reader
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual_mode())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def _usual_mode() -> int:
    """The permissions of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def changing(folder: str | Path, replaces: Iterable[str] = ()) -> Iterator[Path]:
    """A folder inside `folder` to write files into, so that all of them change or none does.

    When the block ends, everything is flushed, and then moved: before that no old file is touched. Whatever goes wrong,
    in the block or in the moving, the old files are put back, and folders that were not there are gone again.

    replaces: patterns of names; a file that matches one and is not written anew is removed in the same step.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{STAGING}*"):
        shutil.rmtree(stale)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=STAGING, ignore_cleanup_errors=True) as staged:
            yield Path(staged)
            _move_in(Path(staged), folder, replaces)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)  # a full disk does not say of what
        with suppress(OSError):  # not empty: somebody else's by now
            for place in missing:
                place.rmdir()
        raise


def _move_in(staged: Path, folder: Path, replaces: Iterable[str]) -> None:
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == MANIFEST, name))
    for name in names:
        (staged / name).chmod(_usual_mode())  # some libraries write for their user alone
        _flush(staged / name)
    outdated = {path.name for pattern in replaces for path in folder.glob(pattern)} - set(names)
    _swap(staged, folder, names, sorted(outdated))


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _swap(staged: Path, folder: Path, names: list[str], outdated: list[str]) -> None:
    """Move the staged files into the folder, the outdated ones out of it; put the old ones back if that fails."""
    before = staged / "before"
    before.mkdir()
    old = [name for name in [*names, *outdated] if (folder / name).exists()]
    for name in old:
        _link(folder / name, before / name)
    try:
        for name in names:
            os.replace(staged / name, folder / name)
        for name in outdated:
            (folder / name).unlink()
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name in old:
            (folder / name).unlink(missing_ok=True)
            _link(before / name, folder / name)
        raise


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy on file systems that know no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_manifest(folder: str | Path, names: list[str]) -> None:
    """Record size and sha256 of the named files of a folder in its manifest.json. The last file written."""
    folder = Path(folder)
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)}
    atomic_write(folder / MANIFEST, json.dumps({"files": files}, indent=2).encode())


def verify_manifest(folder: str | Path, required: Sequence[str] = ()) -> list[str]:
    """The names of a manifest. CheckpointError, naming every file at once, unless all are there and as it says.

    required: names that the manifest must list.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder}: no {MANIFEST}; this is not a saved model, or its saving was cut off")
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        faults = [f"{name}: not in {MANIFEST}" for name in required if name not in files]
        faults += [fault for name, entry in files.items() if (fault := _fault(folder / name, entry))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: damaged ({error})") from error
    if faults:
        kept = next((path.parent for path in folder.glob(f"{STAGING}*/before/{MANIFEST}")), "a copy")
        raise CheckpointError(f"{folder}: damaged files; restore them from {kept}:\n  " + "\n  ".join(faults))
    return list(files)


def _fault(path: Path, entry: dict) -> str:
    if not path.is_file():
        return f"{path.name}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.name}: {path.stat().st_size} bytes instead of {entry['bytes']}"
    return "" if sha256(path) == entry["sha256"] else f"{path.name}: its sha256 is not the one in {MANIFEST}"
