"""The registry: lazy names, near misses, duplicates, and other people's packages, broken ones among them."""

import sys
from importlib.metadata import EntryPoint

import pytest

from hybridlm.errors import SpecError
from hybridlm.registry import Registry, mixers


@pytest.fixture
def registry() -> Registry:
    return Registry("part", "hybridlm.nothing", {"fraction": "fractions:Fraction"})


def test_a_built_in_name_is_imported_when_asked_for(registry):
    from fractions import Fraction

    assert registry.get("fraction") is Fraction
    assert registry.names() == ["fraction"]
    assert "fraction" in registry
    assert "other" not in registry


def test_an_unknown_name_lists_the_known_and_the_nearest(registry):
    with pytest.raises(SpecError, match=r"unknown part 'fractoin'; known: fraction. Did you mean 'fraction'\?"):
        registry.get("fractoin")


def test_a_registered_class_is_found_until_it_is_forgotten(registry):
    @registry.register("mine")
    class Mine:
        pass

    assert registry.get("mine") is Mine
    registry.unregister("mine")
    assert "mine" not in registry


@pytest.mark.parametrize("name", ["fraction", "mine"])
def test_duplicates_raise(registry, name):
    registry.register("mine")(type("Mine", (), {}))
    with pytest.raises(SpecError, match="registered already"):
        registry.register(name)


def plugins(registry: Registry, **values: str) -> None:
    points = {name: [EntryPoint(name, value, registry.group)] for name, value in values.items()}
    registry.__dict__["_plugins"] = points


def test_a_plugin_is_listed_loaded_and_not_imported_before(registry):
    sys.modules.pop("colorsys", None)
    plugins(registry, hue="colorsys:rgb_to_hsv")
    assert registry.names() == ["fraction", "hue"]
    assert "colorsys" not in sys.modules
    assert registry.get("hue").__name__ == "rgb_to_hsv"


def test_a_broken_plugin_is_named_and_does_not_take_the_rest_down(registry):
    plugins(registry, broken="no_such_module_at_all:Thing", hue="colorsys:rgb_to_hsv")
    listing = {entry.name: entry for entry in registry.listing()}
    assert "does not import" in listing["broken"].error
    assert "no_such_module_at_all" in listing["broken"].error
    assert listing["hue"].error is None
    assert listing["fraction"].part is not None
    with pytest.raises(SpecError, match="broken"):
        registry.get("broken")


def test_a_plugin_cannot_take_a_built_in_name(registry):
    plugins(registry, fraction="colorsys:rgb_to_hsv")
    assert registry.get("fraction").__name__ == "Fraction"
    assert any(entry.error and "taken" in entry.error for entry in registry.listing())


def test_two_packages_with_one_name_are_refused(registry):
    registry.__dict__["_plugins"] = {
        "hue": [EntryPoint("hue", "colorsys:rgb_to_hsv", "g"), EntryPoint("hue", "colorsys:hsv_to_rgb", "g")]
    }
    with pytest.raises(SpecError, match="several packages"):
        registry.get("hue")


def test_every_built_in_mixer_keeps_its_name_in_its_state():
    for name in mixers.names():
        assert mixers.get(name).State.kind == name


def test_a_plugin_that_exits_when_imported_is_named(registry, tmp_path, monkeypatch):
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins(registry, leaver="leaves_at_once:Thing")
    assert "SystemExit(3)" in registry.listing()[-1].error


def test_a_plugin_that_is_no_such_part_is_named():
    registry = Registry("part", "hybridlm.parts", {}, needs=("Config",))
    plugins(registry, hue="colorsys:rgb_to_hsv")
    with pytest.raises(SpecError, match=r"'hue' of .* is no part: it has no Config"):
        registry.get("hue")
