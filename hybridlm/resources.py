"""Where the shipped YAML files live: at the top of a checkout, inside the package once installed as a wheel."""

from __future__ import annotations

from pathlib import Path

from hybridlm.errors import SpecError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent


def config_root() -> Path:
    """The folder that holds models/, train/ and quickstart/.

    A wheel carries it as ``hybridlm/configs``; a checkout (also one installed with ``pip install -e``) keeps it beside
    the package, so that an edited file is the file in use.

    Raises:
        SpecError: the installation holds no configs at all.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            return folder
    raise SpecError(f"no shipped configs beside {_PACKAGE}; is hybridlm installed completely?")


def config_names() -> tuple[str, ...]:
    """Every shipped file as ``config_path`` takes it: "models/tiny.yaml", "quickstart/demo.yaml", ..., sorted."""
    root = config_root()
    return tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml")))


def find_config(path: str | Path, folder: str = "") -> Path:
    """The file `path` if there is one, else the shipped one of that name: its place under configs/, or under
    `folder` there, with ".yaml" or without. Something else that lies at `path` is left for its reader to judge.

    Raises:
        SpecError: nothing lies there, and nothing of that name is shipped.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    shipped = config_names()
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    found = [place for place in (name, f"{folder}/{name}") if place in shipped]
    if found:
        return config_root() / found[0]
    if path.exists():
        return path
    inside = [place for place in shipped if place.startswith(f"{folder}/")]
    near = did_you_mean(f"{folder}/{name}", inside) if folder else did_you_mean(name, shipped)
    raise SpecError(f"{path}: no such file here ({Path.cwd()}), nor a shipped one of that name.{near}")


def config_path(name: str) -> Path:
    """The path of a shipped config. ``name`` is relative to configs/; the suffix and "configs/" may be given or not.

    Raises:
        SpecError: there is no such file, or the name leaves the folder.
    """
    wanted = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted in config_names():
        return config_root() / wanted
    raise SpecError(f"no shipped config {name!r}.{did_you_mean(wanted, config_names())}")
