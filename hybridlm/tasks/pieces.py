"""A text in pieces, some of which are asked, and the sample it is in the tokens of a codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.task import Sample
from hybridlm.text import Codec


@dataclass(frozen=True)
class Piece:
    """Part of a text.

    asked:   whether the model is to write it, after all that stands before.
    spelled: whether each character is encoded by itself. What answers are made of is spelled wherever it stands: then
             it has the same tokens in the text and in the answer, and guessing the same score, under any tokenizer.
    """

    text: str
    asked: bool = False
    spelled: bool = False


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def encoded(pieces: Sequence[Piece], codec: Codec) -> Sample:
    """All tokens but the last, and at each position the next token where it is asked. Ends with an asked piece."""
    letters = {letter for piece in pieces if piece.spelled for letter in piece.text}
    spelling = {letter: codec.encode(letter) for letter in letters}
    tokens = [_spelled(piece.text, spelling) if piece.spelled else codec.encode(piece.text) for piece in pieces]
    asked = np.repeat([piece.asked for piece in pieces], [len(part) for part in tokens])
    ids = np.array([token for part in tokens for token in part], dtype=np.int64)
    return {"ids": ids[:-1], "targets": np.where(asked, ids, IGNORED)[1:]}


def _spelled(text: str, spelling: Mapping[str, list[int]]) -> list[int]:
    return [token for letter in text for token in spelling[letter]]
