"""Which files become documents, and what happens with those that cannot."""

from __future__ import annotations

import pytest

from hybridlm.errors import DataError
from hybridlm.train.corpus import corpus_bytes, cut, draw, pieces, read_corpus, read_parts, standard_library


def write(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_folder_takes_text_and_counts_the_rest(tmp_path):
    write(tmp_path, a="one", b="zwei äöü", binary=b"\0\1", latin=b"\xe4\xf6", nothing="", **{".hidden": "x"})
    seen = []
    corpus = read_corpus(str(tmp_path), seen.append)
    assert {d.path.name for d in corpus.documents} == {"a", "b"}
    assert corpus.skipped == {"binary (it holds a NUL byte)": 1, "not UTF-8 text": 1, "empty": 1}
    assert sum(seen) == corpus_bytes(str(tmp_path))


def test_order_and_digest_do_not_depend_on_the_place(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    write(first, a="one", b="two", c="three")
    write(second, z="one", y="two", x="three")
    assert [d.digest for d in read_corpus(str(first)).documents] == [
        d.digest for d in read_corpus(str(second)).documents
    ]


def test_globs_and_lists_name_each_file_once(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", **{"a.txt": "one", "b.md": "two"})
    corpus = read_corpus([str(tmp_path / "**" / "*.txt"), str(tmp_path), str(tmp_path / "sub" / "b.md")])
    assert sorted(d.path.name for d in corpus.documents) == ["a.txt", "b.md"]


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "missing.txt", "no such file or folder"),
        ({}, "*.txt", "no file matches"),
        ({}, "", "no UTF-8 text .*no files at all"),
        ({"a": b"\0"}, "", "no UTF-8 text .*1 binary"),
        ({"a.bin": b"\0x"}, "a.bin", "a.bin is binary"),
        ({"a.txt": b"\xff\xfe"}, "a.txt", "a.txt is not UTF-8"),
        ({"a.txt": b"ab\xe4"}, "a.txt", "a.txt is not UTF-8"),  # a character cut off at the very end
        ({"a.txt": ""}, "a.txt", "a.txt is empty"),
    ],
)
def test_errors_name_the_path(tmp_path, files, path, message):
    write(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read_corpus(str(tmp_path / path))


def test_empty_list_is_refused():
    with pytest.raises(DataError, match="empty list"):
        read_corpus([])


def test_standard_library_without_its_tests():
    files = standard_library()
    assert len(files) > 300
    assert not [f for f in files if {"site-packages", "test", "tests"} & set(f.parts[-4:])]


def test_separator_makes_documents(tmp_path):
    write(tmp_path, a="one<|endoftext|>two<|endoftext|>\n")
    (document,) = read_corpus(str(tmp_path / "a")).documents
    assert read_parts(document, "<|endoftext|>") == [b"one", b"two"]
    assert len(read_parts(document, None)) == 1


def test_draw_is_uniform():
    draws = [draw(str(i).encode()) for i in range(2000)]
    assert all(0 <= d < 1 for d in draws)
    assert abs(sum(d < 0.25 for d in draws) / 2000 - 0.25) < 0.03


def test_cut_keeps_every_byte_and_every_character():
    text = ("ä" * 500).encode()
    train, held = cut(text, 0.3)
    assert train + held == text
    assert train.decode()
    assert held.decode()
    assert cut(b"a\nb\nc\nd\n", 0.5) == (b"a\nb\n", b"c\nd\n")


def test_pieces_are_the_whole():
    text = ("line ä\n" * 50 + "end").encode()
    cuts = list(pieces(text, size=40))
    assert "".join(cuts).encode() == text
    assert len(cuts) > 5
    assert list(pieces(b"", size=40)) == []
