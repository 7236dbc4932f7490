"""docs/tasks.md says what there is, as it is, and its example is a task."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import yaml

from hybridlm.compose.spec import ModelSpec
from hybridlm.registry import tasks
from hybridlm.tasks.data import TaskData, misfits
from hybridlm.tasks.difficulty import difficulty
from hybridlm.tasks.evaluate import said
from hybridlm.tasks.task import HELD_OUT, TRAINING, Samples, make

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_table_lists_every_task_with_its_difficulty_and_its_guess():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    told = {row[0].strip("| `"): (row[2].strip("`"), row[3]) for row in rows if len(row) == 5}
    expected = {}
    for name in tasks.names():
        task = make(name)
        expected[name] = (" ".join(f"{key}={value}" for key, value in said(task).items()), f"{task.guess():.3g}")
    assert told == expected


def test_every_field_has_a_line_in_its_tasks_docstring():
    from hybridlm.compose.docstrings import field_docs

    for name in tasks.names():
        cls = tasks.get(name)
        assert {field.name for field in difficulty(cls)} <= field_docs(cls.__doc__ or "").keys(), name


def test_the_example_of_batches(capsys):
    exec(EXAMPLES[0], {})
    assert capsys.readouterr().out.strip() == "{'ids': (32, 41), 'targets': (32, 41), 'valid': (32, 41)}"


def test_the_example_of_a_task_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "last_one.py").write_text(EXAMPLES[1])
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("last_one")
    try:
        task, random = make("last_one", {"length": 9}), np.random.default_rng(0)
        right = [task.draw(random)["targets"][-1] == 8 for _ in range(2000)]
        assert abs(np.mean(right) - task.guess()) < 4.5 * 0.5 / 2000**0.5
        ids = [Samples(task, 0).sample(family, 0)["ids"].tobytes() for family in (TRAINING, HELD_OUT)]
        assert ids[0] != ids[1]
        assert next(iter(TaskData("last_one", batch_size=3).train_dataloader()))["ids"].shape == (3, 16)
    finally:
        tasks.unregister("last_one")


def test_the_shipped_model_fits_the_shipped_task():
    config = yaml.safe_load((ROOT / "configs/train/mqar.yaml").read_text(encoding="utf-8"))
    spec = ModelSpec.read(ROOT / config["model"]["spec"])
    assert misfits(make(config["task"], config["data"]["params"]), spec) == []
