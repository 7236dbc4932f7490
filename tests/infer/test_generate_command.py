"""`hybridlm generate`: what it writes is what generate says; states on the disk; stops; what a user can mistype."""

import io
import sys

import pytest
import torch

import hybridlm as hl
from hybridlm.errors import CheckpointError, DataError, SpecError, StateError
from hybridlm.infer.command import Answer, _answers, generate_command
from hybridlm.text import ByteCodec, FileCodec


def build(folder, pattern="SMAW", vocab_size=256):
    """A float64 byte model with random parameters, saved; float64 so that batches and pieces choose the same tokens."""
    model = hl.build(pattern=pattern, d_model=32, vocab_size=vocab_size, seed=1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    hl.save(model, folder)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder: the model lies in its subfolder."""
    folder = tmp_path_factory.mktemp("run")
    build(folder / "model")
    return str(folder)


@pytest.fixture(scope="module")
def model(run):
    return hl.load(run)


def decoded(tokens, codec=None):
    decoder = (codec or ByteCodec()).decoder()
    return "".join(decoder.feed(int(token)) for token in tokens)


def answer(model, text, new, **options):
    """The text that generate gives after a prompt (text or bytes)."""
    ids = list(text.encode() if isinstance(text, str) else text)
    return decoded(hl.generate(model, [ids], new, **options)[0][len(ids) :])


def written(capsys, *arguments, **options):
    """stdout of the command, and its last line on stderr."""
    generate_command(*arguments, **options)
    out, err = capsys.readouterr()
    return out, err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------ what is written
def test_writes_prompt_and_answer_and_says_how_fast(run, model, capsys):
    out, err = written(capsys, run, ["def "], max_new_tokens=30, temperature=0.7, top_p=0.9, seed=3)
    assert out == "def " + answer(model, "def ", 30, temperature=0.7, top_p=0.9, seed=3) + "\n"
    assert err.startswith("read 4 tokens in ")
    assert "wrote 30 in " in err
    assert err.endswith(" tokens/s)")


def test_draws_by_default(run, model, capsys):
    out, _ = written(capsys, run, ["def "])
    assert out == "def " + answer(model, "def ", 200, temperature=0.8) + "\n"


def test_several_prompts_come_one_after_another(run, model, capsys):
    texts = ["one", "and two", "3"]
    out, _ = written(capsys, run, texts, max_new_tokens=12, seed=5)
    alone = [text + answer(model, text, 12, temperature=0.8, seed=5 + i) for i, text in enumerate(texts)]
    assert out == "\n\n".join(alone) + "\n"


def test_a_file_comes_before_each_prompt_and_is_not_written(run, model, capsys, tmp_path):
    (tmp_path / "text").write_bytes("Ein Füller\r\n".encode())
    out, _ = written(capsys, run, ["a", "b"], str(tmp_path / "text"), 8, 0.0)
    assert out == "\n\n".join(text + answer(model, "Ein Füller\r\n" + text, 8) for text in "ab") + "\n"
    out, _ = written(capsys, run, None, str(tmp_path / "text"), 8, 0.0)
    assert out == answer(model, "Ein Füller\r\n", 8) + "\n"


class Recorder(io.StringIO):
    """A stdout that remembers what it had been given at each flush."""

    encoding = "utf-8"

    def __init__(self, tty=False):
        super().__init__()
        self.tty, self.flushed = tty, []

    def isatty(self):
        return self.tty

    def flush(self):
        self.flushed.append(self.getvalue())


def test_text_comes_token_by_token(run, model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Recorder())
    generate_command(run, ["ab"], max_new_tokens=20, seed=3)
    codec = ByteCodec().decoder()
    ids = hl.generate(model, [list(b"ab")], 20, temperature=0.8, seed=3)[0]
    so_far = ["ab"] + [codec.feed(token) for token in ids[2:].tolist()]
    assert out.flushed[:21] == ["".join(so_far[: i + 1]) for i in range(21)]


def test_a_terminal_gets_no_control_characters(run, monkeypatch):
    """What a model writes could move the cursor or rename the window; new lines and tabs may pass."""
    monkeypatch.setattr(sys, "stdout", out := Recorder(tty=True))
    generate_command(run, ["\x1b[2J\x07\x9b\t\n"], max_new_tokens=100, temperature=2.0)
    assert not {c for c in out.getvalue() if ord(c) < 32 or 127 <= ord(c) < 160} - {"\t", "\n"}
    assert out.getvalue().startswith("\ufffd[2J\ufffd\ufffd\t\n")


def test_a_pipe_gets_every_character(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Recorder())
    generate_command(run, ["\x1b\x07"], max_new_tokens=0)
    assert out.getvalue() == "\x1b\x07\n"


def test_an_old_encoding_gets_question_marks(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Recorder())
    out.encoding = "ascii"
    generate_command(run, ["é漢"], max_new_tokens=0)
    assert out.getvalue() == "??\n"


def test_a_tokenizer_in_the_run_is_used(tmp_path, capsys):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    model = build(tmp_path, "MA", vocab_size=8)
    words.save(str(tmp_path / "tokenizer.json"))
    out, _ = written(capsys, str(tmp_path), ["the cats"], max_new_tokens=12, temperature=2.0)
    tokens = hl.generate(model, [[1, 2, 3]], 12, temperature=2.0)[0][3:]
    text = decoded(tokens, FileCodec(tmp_path / "tokenizer.json"))
    assert text
    assert out == "the cats" + text + "\n"


def test_through_the_command_line(run, model, capsys):
    from hybridlm.cli import main

    options = ["--max-new-tokens", "9", "--temperature", "0", "--stop", "\\n\\n", "\x00", "--seed", "2"]
    assert main(["generate", run, "--prompt", "def ", "--prompt", "[1, 2]", *options]) == 0
    both = capsys.readouterr().out
    assert both.startswith("def " + answer(model, "def ", 9).partition("\x00")[0].partition("\n\n")[0])
    assert "\n\n[1, 2]" in both


# --------------------------------------------------------------------------------------------------------------- states
def test_going_on_from_a_saved_state_equals_one_long_prompt(run, model, capsys, tmp_path):
    path = str(tmp_path / "state")
    written(capsys, run, ["Once upon"], max_new_tokens=7, temperature=0.0, save_state=path)
    read = hl.generate(model, [list(b"Once upon")], 7)[0].tolist()
    out, err = written(capsys, run, [" a time"], max_new_tokens=9, temperature=0.0, load_state=path, save_state=path)
    assert out == " a time" + answer(model, bytes(read) + b" a time", 9) + "\n"
    assert err.startswith("read 7 tokens in ")
    read = hl.generate(model, [[*read, *b" a time"]], 9)[0].tolist()
    out, _ = written(capsys, run, ["?"], max_new_tokens=9, temperature=0.0, load_state=path)
    assert out == "?" + answer(model, bytes(read) + b"?", 9) + "\n"


def test_many_questions_about_one_text(run, model, capsys, tmp_path):
    """Read once with no answer; then every question goes on from there, and the file stays as it was."""
    path = tmp_path / "state"
    out, err = written(capsys, run, ["A long text."], max_new_tokens=0, save_state=str(path))
    assert (out, err) == ("A long text.\n", "prompt: 12 tokens")
    before = path.read_bytes()
    out, _ = written(capsys, run, ["Who?", "When, then?"], max_new_tokens=6, temperature=0.0, load_state=str(path))
    assert out == "\n\n".join(q + answer(model, "A long text." + q, 6) for q in ("Who?", "When, then?")) + "\n"
    assert path.read_bytes() == before


def test_a_batch_of_states_goes_on_row_by_row(run, model, capsys, tmp_path):
    path = str(tmp_path / "state")
    written(capsys, run, ["One.", "Number two."], max_new_tokens=0, save_state=path)
    out, _ = written(capsys, run, ["a", "b"], max_new_tokens=6, temperature=0.0, load_state=path)
    assert out == "a" + answer(model, "One.a", 6) + "\n\nb" + answer(model, "Number two.b", 6) + "\n"
    with pytest.raises(StateError, match="2 rows, and there are 1 prompts"):
        generate_command(run, ["a"], load_state=path)


def test_a_state_of_another_model_is_refused(run, capsys, tmp_path):
    path = tmp_path / "state"
    build(tmp_path / "other", "MM")
    written(capsys, str(tmp_path / "other"), ["a"], max_new_tokens=0, save_state=str(path))
    with pytest.raises(StateError, match="another model"):
        generate_command(run, ["a"], load_state=str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="damaged"):
        generate_command(run, ["a"], load_state=str(path))
    with pytest.raises(StateError, match="no such file"):
        generate_command(run, ["a"], load_state=str(tmp_path / "none"))


# ---------------------------------------------------------------------------------------------------------------- stops
def fed(text, stops):
    row = Answer(ByteCodec().decoder(), stops)
    return [row.feed(byte) for byte in text.encode()], row


def test_text_is_held_back_only_where_a_stop_may_have_begun():
    pieces, row = fed("a\nb\n\nc", ["\n\n"])
    assert pieces == ["a", "", "\nb", "", "", ""]
    assert row.ended
    assert row.rest() == ""


@pytest.mark.parametrize(
    ("text", "stops", "shown", "rest"),
    [
        ("abcabd!", ["abd"], "abc", ""),
        ("aab", ["ab"], "a", ""),
        ("no end", ["x"], "no end", ""),
        ("almost ST", ["STOP"], "almost ", "ST"),
        ("one two", ["two", "one"], "", ""),
        ("1212123", ["2123"], "121", ""),
        ("für é", ["é"], "für ", ""),
    ],
)
def test_stops_end_the_answer_and_are_not_written(text, stops, shown, rest):
    pieces, row = fed(text, stops)
    assert ("".join(pieces), row.rest()) == (shown, rest)
    assert row.ended == any(stop in text for stop in stops)


def test_a_stop_ends_its_row_and_the_state_has_read_it(run, model, capsys, tmp_path):
    path = str(tmp_path / "state")
    full = answer(model, "def ", 40, temperature=0.8)
    stop = full[20:22]
    at = full.index(stop)
    out, err = written(capsys, run, ["def "], max_new_tokens=40, stop=[stop], save_state=path)
    assert out == "def " + full[:at] + "\n"
    ids = hl.generate(model, [list(b"def ")], 40, temperature=0.8)[0].tolist()
    count = next(n for n in range(1, 41) if stop in decoded(ids[4 : 4 + n]))
    assert f"wrote {count} in" in err
    assert hl.load_state(path).position.tolist() == [4 + count]


def test_new_lines_in_a_stop_may_be_spelt_out():
    row = _answers(ByteCodec(), ["\\n\\n", "\\t|\\\\n"], 1)[0]
    assert "".join(row.feed(byte) for byte in b"a\\n\\n\t|\nb\t|\\nc") == "a\\n\\n\t|\nb"
    assert row.ended


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, "prompt: nothing to continue"),
        ({"prompt": []}, DataError, "prompt: nothing to continue"),
        ({"prompt": [""]}, DataError, "prompt: an empty text"),
        ({"prompt": ["a", ""]}, DataError, "prompt: an empty text"),
        ({"prompt_file": "none.txt"}, DataError, "prompt_file: none.txt: no such file"),
        ({"prompt": ["a"], "max_new_tokens": -1}, SpecError, "max_new_tokens: -1"),
        ({"prompt": ["a"], "temperature": -1.0}, SpecError, "temperature: -1.0"),
        ({"prompt": ["a"], "temperature": 0.0, "top_k": 3}, SpecError, "top_k: 3 does nothing at temperature 0"),
        ({"prompt": ["a"], "stop": [""]}, DataError, "stop: an empty text"),
        ({"prompt": ["a"], "seed": -1}, SpecError, "seed: -1"),
        ({"prompt": ["a"], "save_state": "no/where"}, DataError, "save_state: no/where: its folder does not exist"),
        ({"prompt": ["a"], "save_state": "/"}, DataError, "save_state: / is a folder"),
        ({"prompt_file": "/"}, DataError, "prompt_file: /: a folder, not a file"),
        (
            {"prompt": ["a"], "cuda_graph": True},
            SpecError,
            "cuda_graph: the model is on cpu, and a CUDA graph needs a GPU",
        ),
        ({"prompt": ["a"], "device": "tpu"}, SpecError, "device: 'tpu'; it must be one of auto, cpu"),
    ],
)
def test_mistakes_are_named(run, options, error, message):
    with pytest.raises(error, match=message):
        generate_command(run, **options)


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="not a saved model or a run"):
        generate_command(str(tmp_path), ["a"])


def test_a_binary_file_is_no_prompt(run, tmp_path):
    (tmp_path / "blob").write_bytes(b"text\xff\xfe")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 4\)"):
        generate_command(run, prompt_file=str(tmp_path / "blob"))


def test_the_tokenizer_must_fit_the_model(tmp_path, capsys):
    build(tmp_path / "small", "M", vocab_size=64)
    with pytest.raises(DataError, match=r"the tokenizer has 256 tokens and the model 64; put the tokenizer\.json"):
        generate_command(str(tmp_path / "small"), ["a"])
    build(tmp_path / "large", "M", vocab_size=300)
    generate_command(str(tmp_path / "large"), ["a"], max_new_tokens=4)
    assert "no tokenizer.json; reading and writing bytes, 256 of the model's 300 tokens" in capsys.readouterr().err
