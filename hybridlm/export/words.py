"""What every model card says in the same words: that of an export, and that of our own form."""

from __future__ import annotations

from hybridlm.compose.spec import ModelSpec
from hybridlm.export.tokenizer import Text

CARD = "README.md"
LENGTH = 2000
"""Characters of a pattern that a page has room for."""


def shown_pattern(spec: ModelSpec) -> str:
    """The pattern, as far as there is room for it."""
    return spec.pattern if len(spec.pattern) <= LENGTH else f"{spec.pattern[:LENGTH]}..."


def shown_tokenizer(text: Text | None) -> str:
    """How ids become text."""
    if text is None:
        return "none came with it: ids in, ids out"
    return "bytes of UTF-8, a token each" if text.path is None else "tokenizer.json, as it was trained with"
