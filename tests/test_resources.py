"""Shipped configs are found in a checkout and in a wheel, and a wrong name says what was meant."""

from __future__ import annotations

import pytest

from hybridlm import resources
from hybridlm.errors import SpecError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty installation: returns the folder that plays hybridlm/."""
    folder = tmp_path / "hybridlm"
    folder.mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", folder)
    return folder


def _write(folder, name="models/tiny.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text("d_model: 32\n")
    return path


@pytest.mark.parametrize("name", ["models/tiny", "models/tiny.yaml", "configs/models/tiny.yaml"])
def test_checkout(package, name):
    path = _write(package.parent / "configs")
    assert resources.config_path(name) == path


def test_wheel_comes_first(package):
    _write(package.parent / "configs")
    path = _write(package / "configs")
    assert resources.config_path("models/tiny") == path
    assert resources.config_names() == ("models/tiny.yaml",)


def test_wrong_name_suggests_the_right_one(package):
    _write(package / "configs")
    with pytest.raises(SpecError, match=r"no shipped config 'models/tinny'.*models/tiny\.yaml"):
        resources.config_path("models/tinny")


def test_name_cannot_leave_the_folder(package):
    _write(package / "configs")
    (package / "secret.yaml").write_text("x: 1\n")
    with pytest.raises(SpecError):
        resources.config_path("../secret")


def test_nothing_installed(package):
    with pytest.raises(SpecError, match="no shipped configs"):
        resources.config_root()


def test_a_file_of_the_user_comes_before_a_shipped_one(package, tmp_path, monkeypatch):
    shipped = _write(package.parent / "configs")
    here = tmp_path / "here"
    (here / "tiny").mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("tiny", "tiny.yaml", "models/tiny", "configs/models/tiny.yaml"):
        assert resources.find_config(name, "models") == shipped
    (here / "tiny.yaml").write_text("d_model: 64\n")
    assert resources.find_config("tiny.yaml", "models").read_text() == "d_model: 64\n"
    assert resources.find_config(here / "tiny") == here / "tiny"  # a folder: whoever reads it says so
    with pytest.raises(SpecError, match=r"tinny: no such file here .*Did you mean 'models/tiny\.yaml'\?"):
        resources.find_config("tinny", "models")
