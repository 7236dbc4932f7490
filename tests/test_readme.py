"""The README is executed, and so are the pages on its commands: Python as it stands, every command, training shortened.

A command that no runner knows fails the tests: whatever is promised is tried.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hybridlm as hl
from hybridlm import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{page}.md" for page in ("describe", "presets", "train", "generate", "signals"))]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]


def _blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE)


def _commands(page: str = "README.md") -> list[str]:
    """Lines of the shell blocks, parts joined by && apart; in the README also what stands in backticks."""
    lines = [line.partition(" #")[0] for block in _blocks("(?:sh|bash)", page) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE) if page == "README.md" else ""
    inline = re.findall(r"`((?:hybridlm|make|pip|python3?) [^`]+)`", prose)
    parts = [part.strip() for line in [*lines, *inline] for part in line.split("&&")]
    return list(dict.fromkeys(part for part in parts if part))


# ------------------------------------------------------------------------------------------------------------- runners
def _run(command: str, *more: str, run: str = "RUN") -> None:
    """`hybridlm ...` in this process; RUN is the name of a run folder."""
    words = [run if word == "RUN" else word for word in shlex.split(command)]
    assert words[0] == "hybridlm"
    assert cli.main([*words[1:], *more]) == 0, command


def _train(command: str) -> None:
    """A few steps on a small text; one step more where a run is resumed."""
    shorter = {"trainer.enable_progress_bar": "false", "trainer.max_steps": "4"}
    if "--resume" not in command:
        text = {"data.path": "texts", "data.cache": "cache", "data.context": "32"}
        signals = {"data.seconds": "0.5", "data.held_out": "8"}
        shorter |= (signals if "signals" in command else text) | {"data.batch_size": "2"}
        shorter |= {"trainer.max_steps": "3", "trainer.val_check_interval": "3"}
    _run(command, *(word for key, value in shorter.items() for word in (f"--{key}", value)))


def _generate(command: str) -> None:
    """A few tokens, with the run that was trained before it, or with an untrained model."""
    if not Path("runs").exists():
        hl.save(hl.build("configs/models/tiny.yaml"), "runs/tiny/0")
    (run,) = Path("runs").glob("*/0")
    new = re.search(r"--max-new-tokens (\d+)", command)
    _run(command, *([] if new else ["--max-new-tokens", "4"]), run=str(run))
    if saved := re.search(r"--save-state (\S+)", command):
        read = Path("book.txt").stat().st_size + int(new[1] if new else 4)
        assert hl.load_state(saved[1]).position.tolist() == [read]


def _convert(command: str) -> None:
    """The run that was trained before it, for others; and what that wrote, back again."""
    (run,) = Path("runs").glob("*/0")
    _run(command, run=str(run))


def _laws(command: str) -> None:
    from hybridlm.testing.__main__ import main

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "hybridlm.testing"]
    assert main(words[3:]) == 0


def _demo(command: str) -> None:
    """What `make demo` runs, on less text and for seconds instead of minutes."""
    from hybridlm.train import demo

    assert "-m hybridlm.train.demo" in _dry(command)
    with pytest.MonkeyPatch.context() as patch:
        for name, less in {"CONTEXT": 32, "BATCH": 2, "SCORED": 2}.items():
            patch.setattr(demo, name, less)
        assert demo.main(["--minutes", "0.03", "--run", "runs/demo"]) == 0
    hl.load("runs/demo")


def _test(command: str) -> None:
    """Not run, or it would run itself: it is what these tests are run with."""
    assert "-m pytest" in _dry(command)


def _dry(command: str) -> str:
    """What make would do; `--` keeps MAKEFLAGS of a make that runs these tests out of it."""
    if shutil.which("make") is None:
        return (ROOT / "Makefile").read_text(encoding="utf-8").partition(f"\n{command.removeprefix('make ')}:")[2]
    words = ["make", "-n", "-C", str(ROOT), *shlex.split(command)[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}).stdout


def _install(command: str) -> None:
    """Not run: test_packaging builds and installs. Here: the files it names are there."""
    files = [word for word in shlex.split(command) if word.endswith(".txt") or word == "."]
    assert all((ROOT / file).exists() for file in files)
    assert (ROOT / "pyproject.toml").exists()


RUNNERS: dict[str, Callable[[str], None]] = {
    r"make demo": _demo,
    r"make test": _test,
    r"(python3 -m venv|\. |pip install) ?.*": _install,
    r"hybridlm (describe|mixers|doctor|schema|tokenize)\b.*": _run,
    r"hybridlm (fit|validate|test|predict)\b.*": _train,
    r"hybridlm generate\b.*": _generate,
    r"hybridlm (export|import)\b.*": _convert,
    r"python -m hybridlm\.testing\b.*": _laws,
}


def _runners(command: str) -> list[Callable[[str], None]]:
    return [runner for pattern, runner in RUNNERS.items() if re.fullmatch(pattern, command)]


def _in_order(page: str) -> list[str]:
    """Commands that go on from what the ones before them left."""
    return [command for command in _commands(page) if set(_runners(command)) & {_train, _generate, _convert}]


ALONE = list(dict.fromkeys(command for page in PAGES for command in _commands(page) if command not in _in_order(page)))


# --------------------------------------------------------------------------------------------------------------- tests
@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to run in, with what a clone has and the README names, and a text to read."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "hybridlm").glob("*.py")))
    (tmp_path / "texts").mkdir()
    for path in (tmp_path / "book.txt", tmp_path / "texts/book.txt"):
        path.write_text(text[:8000], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [command for page in PAGES for command in _commands(page)])
def test_every_command_has_a_runner(command):
    assert len(_runners(command)) == 1, f"{command}: nothing here runs it"


def test_commands_are_found():
    """Of the table, of blocks and of sentences; a reader that finds nothing would pass everything."""
    table = [cell for row in README.splitlines() if row.startswith("| ") for cell in re.findall(r"`(\w+ .*)` \|$", row)]
    assert len(table) >= 7
    assert set(table) <= set(_commands())
    assert {"make demo", "make test", "python -m hybridlm.testing mamba2"} <= set(_commands())
    assert len([command for command in _commands() if "--plot" in command]) == 1


@pytest.mark.parametrize("page", ["README.md", "docs/describe.md", "docs/presets.md", "docs/generate.md"])
def test_python_runs(page, place):
    namespace: dict = {"__name__": "__main__"}
    for block in _blocks("python", page):  # one after the other, as they are read
        exec(compile(block, page, "exec"), namespace)
    shapes = {"README.md": ("text", (2, 30)), "docs/generate.md": ("out", (2, 18))}
    if page in shapes:
        name, shape = shapes[page]
        assert namespace[name].shape == shape


@pytest.mark.parametrize("block", _blocks("yaml"))
def test_yaml_is_a_model(block, place):
    (place / "model.yaml").write_text(block, encoding="utf-8")
    model = hl.build("model.yaml")
    assert len(model.blocks) == 8
    assert hl.build(**yaml.safe_load(block)).spec == model.spec


@pytest.mark.parametrize("command", ALONE)
def test_command(command, place):
    for runner in _runners(command):
        runner(command)


@pytest.mark.parametrize("page", [page for page in PAGES if _in_order(page)])
def test_commands_in_order(page, place):
    """Each goes on from what the ones before it left: a run, a saved state."""
    for command in _in_order(page):
        for runner in _runners(command):
            runner(command)


# ------------------------------------------------------------------------------------------------------------- picture
def test_picture_is_what_its_command_draws(place):
    """Every word and number in the picture, which is drawn anew by the command that the README names."""
    (shown,) = [ROOT / file for file in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)]
    (command,) = [command for command in _commands() if "--plot" in command]
    _run(command)
    (drawn,) = place.glob("*.svg")
    words = _words(drawn)
    assert "(M3A)12" in words
    assert words == _words(shown), f"run: {re.sub(r'--plot .*', f'--plot {shown.relative_to(ROOT)}', command)}"


def _words(svg: Path) -> list[str]:
    """Texts are drawn as outlines; a comment before each says what it is."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ changelog
def test_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.*?)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)[1] == hl.__version__
