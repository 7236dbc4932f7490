"""Tasks that are text: bytes and tokenizers, where a needle lies, which entry is asked."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridlm.errors import SpecError
from hybridlm.tasks.indirect_object import NAMES
from hybridlm.tasks.needle import CITIES, library
from hybridlm.tasks.phonebook import FIRST, LAST
from hybridlm.tasks.pieces import Piece, encoded
from hybridlm.tasks.task import make
from hybridlm.text import ByteCodec, FileCodec

TEXTS = ("phonebook", "needle", "indirect_object")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A tokenizer of byte pairs that has seen digits in twos and threes, and whole names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [
        f" {name} {number:03d} 48213 " for name in (*NAMES, *FIRST, *LAST, *CITIES) for number in range(0, 999, 50)
    ]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*words, library()[:50_000]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return FileCodec(path)


def text_of(codec, tokens):
    decoder = codec.decoder()
    return "".join(decoder.feed(int(token)) for token in tokens)


def bytes_of(sample):
    return bytes(sample["ids"].tolist()).decode()


# -------------------------------------------------------------------------------------------------------------- pieces
def test_pieces_are_read_and_the_next_token_is_asked():
    sample = encoded([Piece("ab"), Piece("cd", asked=True), Piece("e"), Piece("f", asked=True)], ByteCodec())
    assert sample["ids"].tolist() == list(b"abcde")
    assert sample["targets"].tolist() == [-100, ord("c"), ord("d"), -100, ord("f")]


@pytest.mark.parametrize("name", TEXTS)
def test_a_tokenizer_reads_the_same_text(name, codec):
    """Of the same draw: fewer tokens, the same letters, and the same answer, a token a character."""
    ours, theirs = make(name), make(name, codec=codec)
    assert (ours.vocab_size, theirs.vocab_size) == (256, codec.vocab_size)
    assert ours.length == theirs.length
    for seed in range(20):
        plain, coded = (task.draw(np.random.default_rng(seed)) for task in (ours, theirs))
        assert len(coded["ids"]) < len(plain["ids"])
        assert text_of(codec, coded["ids"]) == bytes_of(plain)
        answers = [sample["targets"][sample["targets"] != -100] for sample in (plain, coded)]
        assert [text_of(codec, [token]) for token in answers[1]] == [chr(byte) for byte in answers[0]]
        assert coded["targets"].max() < theirs.vocab_size


def test_what_answers_are_made_of_has_the_same_tokens_in_the_text(codec):
    """A number is digit by digit in the book too, where the tokenizer would take more at once."""
    merged = 0
    for seed in range(20):
        sample = make("needle", {"depth": 0.5}, codec=codec).draw(np.random.default_rng(seed))
        answer = sample["targets"][sample["targets"] != -100].tolist()
        merged += len(codec.encode(text_of(codec, answer))) < 5
        ids = sample["ids"].tolist()
        assert any(ids[i : i + 5] == answer for i in range(len(ids) - 10))
    assert merged >= 2  # numbers of which the tokenizer would take more than a digit at once


# ------------------------------------------------------------------------------------------------------- book, needle
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_name_that_is_asked_stands_where_depth_says(depth):
    task = make("phonebook", {"depth": depth, "length": 2000})
    for seed in range(10):
        *book, _, question = bytes_of(task.draw(np.random.default_rng(seed))).split("\n")
        place = [line.split(":")[0] for line in book].index(question.split(":")[0])
        assert place == {0.0: 0, 0.5: round(0.5 * (len(book) - 1)), 1.0: len(book) - 1}[depth]
        assert len(book) > 60


def test_any_entry_is_asked_without_a_depth():
    task, random, places = make("phonebook"), np.random.default_rng(0), []
    for _ in range(300):
        *book, _, question = bytes_of(task.draw(random)).split("\n")
        places.append([line.split(":")[0] for line in book].index(question.split(":")[0]) / (len(book) - 1))
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 45


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_needle_lies_where_depth_says(depth):
    task = make("needle", {"depth": depth, "length": 20_000})
    for seed in range(10):
        text = bytes_of(task.draw(np.random.default_rng(seed)))
        place = text.index("\n# The magic number of ") / text.rindex("\n# The magic number of ")
        assert place == pytest.approx(depth, abs=0.02)


def test_a_needle_lies_anywhere_without_a_depth():
    task, random = make("needle", {"length": 5000}), np.random.default_rng(0)
    texts = [bytes_of(task.draw(random)) for _ in range(200)]
    places = [text.index("\n# The magic number of ") / len(text) for text in texts]
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 30
    assert len({text[:200] for text in texts}) > 150  # the text around it is another each time


def test_the_text_around_a_needle_is_source_and_has_none_itself():
    assert library().isascii()
    assert "\n# The magic number of " not in library()
    assert "import " in bytes_of(make("needle", {"length": 1 << 20, "depth": 0.5}).draw(np.random.default_rng(0)))


def test_a_long_book_is_written_in_time():
    sample = make("phonebook", {"length": 1 << 15}).draw(np.random.default_rng(0))
    assert (1 << 15) - 64 < len(sample["ids"]) <= 1 << 15


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("phonebook", {"length": 64}, "length: 64 has no room for two entries .* use at least 69"),
        ("phonebook", {"depth": 1.5}, "depth: 1.5 is out of range"),
        ("needle", {"length": 64, "digits": 20}, "length: 64 has no room .* use at least 102"),
        ("indirect_object", {"names": 2, "people": 3}, "people: 3 different ones, but names = 2; use at most 2"),
    ],
)
def test_what_does_not_go_together_is_named_with_the_fix(name, params, message):
    with pytest.raises(SpecError, match=rf"{name}\.{message}"):
        make(name, params)


@pytest.mark.parametrize(("name", "params"), [("phonebook", {"length": 69}), ("needle", {"length": 102, "digits": 20})])
def test_the_fix_that_is_named_works(name, params):
    task = make(name, params)
    assert len(task.draw(np.random.default_rng(0))["ids"]) <= task.length


# ------------------------------------------------------------------------------------------------------------ sentences
def test_names_have_initials_of_their_own():
    assert len({name[0] for name in NAMES}) == len(NAMES) == 26
    assert len(set(FIRST)) == len(FIRST)
    assert len(set(LAST)) == len(LAST)


@pytest.mark.deep
def test_the_longest_sentence_is_as_long_as_said():
    task, random = make("indirect_object", {"names": 2}), np.random.default_rng(0)
    longest = max(len(task.draw(random)["ids"]) for _ in range(60_000))
    assert task.length - 1 <= longest <= task.length


def test_the_one_who_appears_once_is_first_as_often_as_last():
    task, random = make("indirect_object", {"people": 3}), np.random.default_rng(0)
    places = []
    for _ in range(600):
        sample = task.draw(random)
        words = bytes_of(sample).replace(",", "").replace(".", "").split()
        names = [word for word in words if word in NAMES][:3]
        places.append([name[0] for name in names].index(chr(sample["targets"][-1])))
    assert np.bincount(places, minlength=3).min() > 160
