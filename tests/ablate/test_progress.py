"""The table of a study that runs: counts, pace and time left, from what lies in the folders."""

import io
import json
import time

import pytest
from rich.console import Console

from hybridlm.ablate.job import Outcome, pack_folder
from hybridlm.ablate.progress import Board, _clock
from hybridlm.ablate.run import packs_of, run
from hybridlm.train.console import Terminal
from tests.ablate.subjects import small_study

STUDY = small_study(steps=8, seeds=1, tests=[])


def board_of(folder, **note):
    """A board with one pack at work, which stands at half."""
    board, pack = Board(STUDY, folder, Terminal(width=120)), packs_of(STUDY.runs(), "seed")[0]
    board.begin(pack)
    place = pack_folder(folder, pack.key)
    place.mkdir(parents=True)
    said = {"step": 4, "steps": 8, "members": 2, "first": 0, "seconds": 2.0, "when": time.time()}
    (place / "progress.json").write_text(json.dumps(said | note))
    board.looked = -1e9
    board.show([pack.key])
    return board


def text_of(board):
    console = Console(width=120, file=io.StringIO())
    console.print(board.table())
    return console.file.getvalue()


def test_it_shows_what_is_at_work(tmp_path):
    text = text_of(board_of(tmp_path))
    line = next(line for line in text.splitlines() if "pure" in line)
    assert [word for word in line.replace("│", " ").split() if word != "pure"] == ["0/2", "2", "4/8", "4"]
    assert "time left" in text


def test_the_time_left_is_by_flops(tmp_path):
    """Half of the pure arm in 10 s: the other half and the hybrid arm are left."""
    board = board_of(tmp_path)
    board.started = time.monotonic() - 10
    work = {name: board.work[name] for name in ("hybrid", "pure")}
    left = 10 * (work["pure"] + 2 * work["hybrid"]) / work["pure"]
    assert board.seconds_left() == pytest.approx(left, rel=0.01)


def test_steps_before_a_resume_took_no_time_now(tmp_path):
    board = board_of(tmp_path, first=3)
    board.started = time.monotonic() - 10
    work = {name: board.work[name] for name in ("hybrid", "pure")}
    left = 10 * (work["pure"] + 2 * work["hybrid"]) / (work["pure"] * 2 / 8)
    assert board.seconds_left() == pytest.approx(left, rel=0.01)


def test_before_the_first_step_nobody_knows(tmp_path):
    assert Board(STUDY, tmp_path, Terminal()).seconds_left() is None
    assert "time left: ?" in text_of(Board(STUDY, tmp_path, Terminal()))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_note_that_is_being_written_is_passed_over(tmp_path, text):
    board = board_of(tmp_path)
    (next(iter(tmp_path.rglob("progress.json")))).write_text(text)
    board._look()
    assert board.seconds_left() is None
    assert "0/2" in text_of(board)


def test_failures_are_counted_and_told(tmp_path, capsys):
    board = board_of(tmp_path)
    pack = next(iter(board.packs.values()))
    board.console = Terminal(stderr=True)
    board.tell(f"{pack}: ValueError: [no]", "failed")
    board.end(pack, Outcome("failed", "ValueError: [no]"))
    assert "failed: pure, seeds 0, lr 0.001, 0.004: ValueError: [no]" in capsys.readouterr().err


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    run(STUDY, tmp_path, "here")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("done: ")][-1] == "done: hybrid, seeds 0, lr 0.001, 0.004; 2 of 2"
    board = Board(STUDY, tmp_path, Terminal())
    assert "2/2" in text_of(board)
    assert f"best {board.score}" in text_of(board)


def test_a_clock_reads_as_one():
    assert [_clock(seconds) for seconds in (None, 0, 59.6, 61, 3601)] == ["?", "0:00", "1:00", "1:01", "1:00:01"]
