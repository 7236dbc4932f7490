"""Codecs: there and back without loss, token by token, and never half a character."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import DataError
from hybridlm.text import ByteCodec, FileCodec, codec_of

TEXTS = ["", "def f(x):\n\treturn x\n", "naïve Ω 漢字 😀👩‍👩‍👧 é", "a\u0301 \u200b\x00 end"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level BPE of 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bpe.save(str(path))
    return path


@pytest.fixture(scope="module", params=["bytes", "file"])
def codec(request, tokenizer):
    return ByteCodec() if request.param == "bytes" else FileCodec(tokenizer)


def pieces(codec, ids):
    decoder = codec.decoder()
    return [decoder.feed(token) for token in ids]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(codec, text):
    ids = codec.encode(text)
    assert all(0 <= token < codec.vocab_size for token in ids)
    assert "".join(pieces(codec, ids)) == text


@given(text=st.text(max_size=20))
def test_any_text_there_and_back(codec, text):
    assert "".join(pieces(codec, codec.encode(text))) == text


def test_a_character_comes_whole_or_not_at_all(codec):
    """No piece holds U+FFFD, which is what half a character would decode to."""
    assert not any("\ufffd" in piece for text in TEXTS for piece in pieces(codec, codec.encode(text)))


def test_bytes_come_out_as_soon_as_they_are_a_character():
    assert pieces(ByteCodec(), "é😀a".encode()) == ["", "é", "", "", "", "😀", "a"]


def test_broken_bytes_are_shown_and_do_not_swallow_what_follows(codec):
    """0xff begins no character; 0xc3 begins one that does not continue."""
    decoder = codec.decoder()
    broken = [255, 65, 0xC3, 66]
    ids = broken if isinstance(codec, ByteCodec) else [_byte_token(codec, byte) for byte in broken]
    assert "".join(decoder.feed(token) for token in ids) == "\ufffdA\ufffdB"


def test_many_broken_bytes_do_not_dam_up(codec):
    token = 255 if isinstance(codec, ByteCodec) else _byte_token(codec, 255)
    text = "".join(pieces(codec, [token] * 40))
    assert set(text) == {"\ufffd"}
    assert len(text) == 40


def _byte_token(codec, byte):
    """The id of a single byte in a byte-level vocabulary, which shows bytes as printable characters."""
    if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
        return codec._tokenizer.token_to_id(chr(byte))
    raise AssertionError


def test_ids_beyond_the_vocabulary_have_no_text(codec):
    decoder = codec.decoder()
    assert [decoder.feed(token) for token in (codec.encode("a")[0], codec.vocab_size, 100_000)] == ["a", "", ""]


def test_command_line_arguments_keep_bytes_that_are_no_text():
    assert ByteCodec().encode(b"\xff\xc3a".decode("utf-8", "surrogateescape")) == [0xFF, 0xC3, 0x61]


def test_arguments_that_are_not_utf8_are_told_to_a_tokenizer(tokenizer):
    with pytest.raises(DataError, match="not UTF-8 text"):
        FileCodec(tokenizer).encode(b"\xff\xc3a".decode("utf-8", "surrogateescape"))


def test_decoders_that_look_to_their_left(tmp_path):
    """A word-piece decoder puts a space before a word unless it is the first: it needs the token before."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    words.save(str(tmp_path / "tokenizer.json"))
    codec = FileCodec(tmp_path / "tokenizer.json")
    assert codec.encode("the cats the cat") == [1, 2, 3, 1, 2]
    assert pieces(codec, [1, 2, 3, 1, 2]) == ["the", " cat", "s", " the", " cat"]


def test_a_folder_says_how_it_reads(tmp_path, tokenizer):
    assert isinstance(codec_of(tmp_path), ByteCodec)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    assert isinstance(codec_of(tmp_path / "run"), FileCodec)
    assert isinstance(codec_of(tmp_path / "run" / "model"), FileCodec)
    (tmp_path / "run" / "tokenizer.json").rename(tmp_path / "run" / "model" / "tokenizer.json")
    assert isinstance(codec_of(tmp_path / "run"), FileCodec)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        FileCodec(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(DataError, match=r"no tokenizer\.json of the tokenizers library"):
        FileCodec(tmp_path / "tokenizer.json")
