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


def config_path(name: str) -> Path:
    """The path of a shipped config. ``name`` is relative to configs/; the suffix and "configs/" may be given or not.

    Raises:
        SpecError: there is no such file, or the name leaves the folder.
    """
    wanted = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted in config_names():
        return config_root() / wanted
    raise SpecError(f"no shipped config {name!r}.{did_you_mean(wanted, config_names())}")
