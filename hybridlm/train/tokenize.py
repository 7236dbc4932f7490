"""Training a byte-level BPE tokenizer on text: what `hybridlm tokenize` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from hybridlm.checks import whole
from hybridlm.errors import DataError
from hybridlm.files import atomic_write, check_target
from hybridlm.text import END_OF_TEXT, FileCodec
from hybridlm.train.corpus import Corpus, pieces, read_corpus, read_parts


def train_tokenizer(
    path: str | list[str] | None = None,
    *,
    vocab_size: int = 8192,
    output: str | Path = "tokenizer.json",
    separator: str | None = None,
) -> Path:
    """Train a byte-level BPE on text and write tokenizer.json. Every text can be encoded and decoded without loss.

    Args:
        path: files, folders or globs of UTF-8 text; without one, Python's standard library.
        vocab_size: the most tokens, the 256 bytes and <|endoftext|> among them; 257 or more. A short text has fewer.
        output: where to write.
        separator: text between the documents of a file; it does not enter the vocabulary.

    Raises:
        DataError: no text, or a vocabulary too small. SpecError: a vocabulary that no model has.
    """
    if vocab_size < 257:
        raise DataError(f"vocab_size: {vocab_size}; at least 257 is needed (256 bytes and {END_OF_TEXT})")
    whole("vocab_size", vocab_size, low=257)  # the tokenizers library makes room for all of them at once
    check_target("output", output)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(_texts(read_corpus(path), separator), trainer)
    atomic_write(output, tokenizer.to_str(pretty=True).encode())
    return Path(output)


def _texts(corpus: Corpus, separator: str | None) -> Iterator[str]:
    for document in corpus.documents:
        for part in read_parts(document, separator):
            yield from pieces(part)


def tokenize(
    path: list[str] | None = None, vocab_size: int = 8192, output: str = "tokenizer.json", separator: str | None = None
) -> None:
    """Train a byte-level BPE tokenizer: `hybridlm tokenize --path texts --vocab-size 8192`.

    Args:
        path: files, folders or globs of UTF-8 text; without one, Python's standard library.
        vocab_size: the most tokens; a short text gives fewer.
        output: the file to write; use it with `--data.tokenizer`.
        separator: text between the documents of a file.
    """
    file = train_tokenizer(path, vocab_size=vocab_size, output=output, separator=separator)
    size = FileCodec(file).vocab_size
    print(f"{file}: {size} tokens. Train with --data.tokenizer {file} and vocab_size: {size} in the spec")
