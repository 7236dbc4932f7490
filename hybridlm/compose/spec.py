"""A model as data: what a YAML file says, read strictly.

    d_model: 256
    vocab_size: 256
    pattern: "(M3A)2"
    blocks:
      M: {mixer: {type: mamba2, d_state: 64}, mlp: {type: swiglu}}
      A: {mixer: {type: attention, heads: 8, kv_heads: 2}}
    tie_embeddings: true

Everything is checked by name, type and range here or in `plan`, where the parts' own configs are read; a mistake is a
SpecError that starts with the path of the key. Nothing named in a spec is ever imported except through the registries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from hybridlm import checks
from hybridlm.compose import ends, strict_yaml
from hybridlm.errors import SpecError

BLOCK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
NORM_NAMES = ("rmsnorm", "layernorm")
NORM_PLACES = ("pre", "sandwich")
COMBINATIONS = ("sum", "norm_mean")
LATER = {  # settings that came after the first release, each with the value that says what was the only way before
    "s4": {"time_scale": 1.0},
    "mamba": {"discretization": "euler", "select": ["dt", "B", "C"], "gate": True},
    "mamba2": {"gated_norm": True},
    "attention": {"rope_dim": None},
    "sliding_window": {"rope_dim": None},
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model, down to the last number.

    d_model:          width of the residual stream.
    vocab_size:       number of token ids; of a model that neither reads tokens nor writes them, None.
    pattern:          the stack, in the pattern language, or in the foreign `notation`.
    blocks:           what each letter or [name] stands for: {mixer: {type, ...}, mlp: {type, ...} or none}, and
                      options: norms, input, output, low_rank.
                      Without any, the default alphabet: the registered mixers by their letters.
    mlp:              the MLP of blocks that do not say, and of "-"; none for no MLP.
    norms:            of blocks that do not say, and of "-": pre, or sandwich, a second norm after mixer and MLP each.
    combine:          how mixers side by side are joined: sum, or norm_mean (the mean of their normalised outputs).
    notation:         None, or megatron | layer_types | attn_layer_idx, for patterns written in those languages.
    embed:            what goes in: tokens, or signals by {type: linear, channels: 3}.
    head:             what comes out: lm, {type: classify, classes: 10, pool: mean | last | none}, or
                      {type: regress, outputs: 2, pool: none | mean | last}, or {type: recover, classes: 16}.
    tie_embeddings:   one matrix for the embedding and the output.
    norm, norm_eps:   rmsnorm or layernorm, everywhere; and its epsilon.
    dropout:          probability, on the embedding and on everything added to the residual stream.
    residual_in_fp32: keep the residual stream in float32 whatever the parameters' dtype.
    """

    d_model: int
    vocab_size: int | None = None
    pattern: Any
    blocks: Mapping[str, Any] = field(default_factory=dict)
    mlp: Any = "swiglu"
    norms: str = "pre"
    combine: str = "sum"
    notation: str | None = None
    embed: Any = "tokens"
    head: Any = "lm"
    tie_embeddings: bool = False
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    residual_in_fp32: bool = False

    def __post_init__(self) -> None:
        checks.whole("d_model", self.d_model)
        self._check_ends()
        checks.choice("norms", self.norms, NORM_PLACES)
        checks.choice("combine", self.combine, COMBINATIONS)
        checks.choice("norm", self.norm, NORM_NAMES)
        checks.flag("tie_embeddings", self.tie_embeddings)
        checks.flag("residual_in_fp32", self.residual_in_fp32)
        object.__setattr__(self, "norm_eps", checks.real("norm_eps", self.norm_eps, 1e-12, 1.0))
        object.__setattr__(self, "dropout", checks.real("dropout", self.dropout, 0.0, 0.99))
        if not isinstance(self.blocks, Mapping) or not all(isinstance(name, str) for name in self.blocks):
            raise SpecError(f"blocks: {self.blocks!r}; it must be a mapping of letters and names to blocks")
        for name in self.blocks:
            if not BLOCK_NAME.fullmatch(name):
                raise SpecError(
                    f"blocks.{name}: no pattern can name it; use a letter, or a letter and letters, digits, _ or -"
                )
        object.__setattr__(self, "blocks", _plain(self.blocks))

    def _check_ends(self) -> None:
        """The ends as `ends` writes them, and a vocabulary where there are tokens."""
        object.__setattr__(self, "embed", ends.plain(self.input))
        object.__setattr__(self, "head", ends.plain(self.output))
        reads, writes = self.embed == "tokens", self.head == "lm"
        if reads or writes:
            if self.vocab_size is None:
                verb = "reads" if reads else "writes"
                raise SpecError(f"vocab_size: missing; a model that {verb} tokens needs it, such as 256 for bytes")
            checks.whole("vocab_size", self.vocab_size)
        elif self.vocab_size is not None:
            raise SpecError(
                f"vocab_size: {self.vocab_size!r}, but the model neither reads tokens (embed: {self.input.type}) nor "
                f"writes them (head: {self.output.type}); leave it out"
            )
        if self.tie_embeddings is True and not (reads and writes):
            raise SpecError(
                "tie_embeddings: true, but one matrix can only serve embed: tokens and head: lm, not "
                f"embed: {self.input.type} and head: {self.output.type}; leave it out"
            )

    @cached_property
    def input(self) -> ends.Embed:
        """What goes in."""
        return ends.read_end("embed", self.embed, ends.EMBEDS)

    @cached_property
    def output(self) -> ends.Head:
        """What comes out."""
        return ends.read_end("head", self.head, ends.HEADS)

    @property
    def outputs(self) -> int:
        """Numbers in an answer."""
        return self.vocab_size if self.head == "lm" else self.output.outputs

    @property
    def reads_tokens(self) -> bool:
        """Whether token ids go in."""
        return self.embed == "tokens"

    @property
    def is_language_model(self) -> bool:
        """Tokens in, logits of the next token out."""
        return self.reads_tokens and self.head == "lm"

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """A spec from the plain mapping that a YAML file holds. SpecError: unknown or missing keys, wrong values."""
        checks.known(given, [f.name for f in fields(cls)])
        missing = [name for name in ("d_model", "pattern") if name not in given]
        if missing:
            raise SpecError(f"{missing[0]}: missing; a model needs d_model, pattern and, for tokens, vocab_size")
        return cls(**given)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A spec from a YAML file. SpecError names the file and the key."""
        try:
            return cls.from_dict(strict_yaml.read(path))
        except SpecError as error:
            raise error if str(path) in str(error) else SpecError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The plain mapping; `from_dict` gives the spec back. What once was the only way goes unsaid."""
        unsaid = {"norms": "pre", "embed": "tokens", "head": "lm"}
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(v) for name, v in said.items() if v is not None and unsaid.get(name) != v}

    def to_yaml(self) -> str:
        """The text of a YAML file that `read` reads back."""
        return strict_yaml.dump(self.to_dict())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of its meaning: a state goes on only in a model with the same."""
        return hashlib.sha256(json.dumps(meaning(self.to_dict()), sort_keys=True).encode()).hexdigest()[:16]


def meaning(given: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the meaning of weights and states, of a spec's plain mapping: all but dropout.

    A setting that is LATER goes unsaid where it changes nothing, so that what was saved without it still fits.
    """
    return {key: _early(value) for key, value in given.items() if key != "dropout"}


def _early(value: Any) -> Any:
    if isinstance(value, list):
        return [_early(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    later = LATER.get(str(value.get("type")), {})
    return {key: _early(inner) for key, inner in value.items() if key not in later or later[key] != inner}


def _plain(value: Any) -> Any:
    """Mappings, lists and scalars, as YAML and JSON hold them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
