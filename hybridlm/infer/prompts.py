"""Prompts as one padded batch, whatever form they were given in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.memory import dtype_name
from hybridlm.errors import SpecError

FORMS = "a tensor (batch, time), or a list with one list or 1-D tensor of ids for each prompt"


@dataclass(frozen=True)
class Prompts:
    """ids (b, t) int64; valid (b, t) bool, None where all are; rows: the prompts apart, if they were given so."""

    ids: Tensor
    valid: Tensor | None
    rows: list[Tensor] | None

    @classmethod
    def read(cls, ids: Tensor | Sequence, valid: Tensor | None, vocab_size: int) -> Prompts:
        """Check and pad. SpecError: another form, a prompt without a token, an id outside the vocabulary."""
        if isinstance(ids, Tensor):
            prompts = cls(_integers("ids", ids, 2).long(), _mask(valid, ids), None)
        else:
            prompts = cls._ragged(ids, valid)
        prompts._check(vocab_size)
        return prompts

    @classmethod
    def _ragged(cls, prompts: Any, valid: Tensor | None) -> Prompts:
        if not isinstance(prompts, list | tuple) or not prompts or isinstance(prompts[0], int):
            raise SpecError(f"ids: {_brief(prompts)}; give {FORMS}")
        if valid is not None:
            raise SpecError("valid: it goes with a padded tensor; prompts in a list need none")
        rows = [_row(i, prompt) for i, prompt in enumerate(prompts)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return cls(ids, None if valid.all() else valid, rows)

    def _check(self, vocab_size: int) -> None:
        empty = [i for i, length in enumerate(self.lengths) if length == 0]
        if empty:
            raise SpecError(f"ids: prompt {empty[0]} is empty; give it at least one token to continue")
        real = self.ids if self.valid is None else self.ids[self.valid]
        outside = (real < 0) | (real >= vocab_size)
        if outside.any():
            bad = int(real[outside][0])
            raise SpecError(f"ids: {bad} is no token of the model; its vocabulary has ids 0 to {vocab_size - 1}")

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, pads not counted."""
        b, t = self.ids.shape
        return [t] * b if self.valid is None else self.valid.sum(dim=1).tolist()

    def followed_by(self, steps: list[Tensor], counts: list[int]) -> Tensor | list[Tensor]:
        """The prompts with new tokens after them, in the form they came in. steps: (b,) each; counts: of each row."""
        new = torch.stack(steps, dim=1) if steps else self.ids[:, :0]
        if self.rows is None:
            return torch.cat([self.ids, new.to(self.ids.device)], dim=1)
        tails = [row[:count] for row, count in zip(new, counts, strict=True)]
        return [torch.cat([row, tail.to(row.device)]) for row, tail in zip(self.rows, tails, strict=True)]

    def to(self, device: torch.device) -> Prompts:
        """The same on a device; the rows stay where they are."""
        return Prompts(self.ids.to(device), None if self.valid is None else self.valid.to(device), self.rows)


def _row(index: int, prompt: Any) -> Tensor:
    try:
        row = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"ids: prompt {index} is {_brief(prompt)}; give {FORMS}") from error
    if row.numel() == 0:
        return row.reshape(0).long()  # an empty list has no dtype of its own
    return _integers(f"ids: prompt {index}", row, 1).long()


def _integers(name: str, ids: Tensor, ndim: int) -> Tensor:
    if ids.ndim != ndim:
        raise SpecError(f"{name}: a tensor of shape {tuple(ids.shape)}; give {FORMS}")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise SpecError(f"{name}: dtype {ids.dtype}; token ids are integers, int64 say")
    return ids


def _mask(valid: Tensor | None, ids: Tensor) -> Tensor | None:
    if valid is None:
        return None
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool or valid.shape != ids.shape:
        raise SpecError(f"valid: {_brief(valid)}; it must be a bool tensor of the shape of ids, {tuple(ids.shape)}")
    return None if valid.all() else valid.to(ids.device)


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {dtype_name(value.dtype)} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
