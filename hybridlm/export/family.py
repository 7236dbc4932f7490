"""What a family of models is: which specs fit into it, how its config says them, and which weights are which."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import ExportError, did_you_mean
from hybridlm.export.fields import Fields
from hybridlm.export.weights import Weight

FAMILIES = (  # by how widely they are served: `auto` takes the first that fits
    "llama",
    "mistral",
    "mamba2",
    "mamba",
    "granite_hybrid",
    "nemotron_h",
    "falcon_h1",
    "jamba",
    "granite_swa",
)
SOURCES = (  # read, and never written
    "bamba",
    "zamba2",
    "mamba_ssm",
)


class Source(ABC):
    """A family as a source of import. It has no state: there is one of each.

    name:         what its file is called, and what --to takes if it is a target, too.
    model_type:   what config.json calls it. architecture: the class in transformers. Empty: transformers knows neither.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    architecture: ClassVar[str]

    def wrote(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is one of this family."""
        return config.get("model_type") == self.model_type

    @abstractmethod
    def spec(self, fields: Fields) -> ModelSpec:
        """The spec of a config of this family. What does not fit is noted in `fields`."""

    @abstractmethod
    def weights(self, stack: Stack) -> list[Weight]:
        """Every tensor of theirs."""

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        """The same for a checkpoint with this config and these names, where there are several forms of them."""
        return self.weights(stack)


class Family(Source):
    """A family as a target of export as well.

    served_by: what runs its checkpoints.
    """

    served_by: ClassVar[tuple[str, ...]] = ()

    def servers(self, stack: Stack, merges: bool) -> tuple[str, ...]:
        """What of `served_by` runs this model. merges: its tokenizer has some; llama.cpp opens no other."""
        in_llama_cpp = merges and self.in_llama_cpp(stack)
        return tuple(name for name in self.served_by if name != "llama.cpp" or in_llama_cpp)

    def in_llama_cpp(self, stack: Stack) -> bool:
        """Whether llama.cpp runs this model of a family that it runs."""
        return True

    @abstractmethod
    def misfits(self, stack: Stack) -> list[str]:
        """What of a model cannot be said in this family: place, value, what is known there. Empty: it is exact."""

    @abstractmethod
    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        """config.json of a stack that fits, with what other readers than transformers need, but for `common`.

        max_length: tokens that it may be asked to read.
        """


def common(family: Family, stack: Stack, dtype: str) -> dict[str, Any]:
    """The fields that every config.json has. dtype: of the weights, as transformers names it."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": stack.spec.vocab_size,
        "hidden_size": stack.spec.d_model,
        "tie_word_embeddings": stack.spec.tie_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name of before
        "use_cache": True,
    }


def ends(stack: Stack, *, embed: str, norm: str, head: str = "lm_head.weight") -> list[Weight]:
    """Embedding, final norm and output; tied, the output goes unsaid."""
    outer = [Weight(embed, ("embed.weight",)), Weight(norm, ("final_norm.weight",))]
    return outer if stack.spec.tie_embeddings else [*outer, Weight(head, ("lm_head.weight",))]


def family(name: str) -> Family:
    """The family of that name, to be written. ExportError: there is none."""
    if name not in FAMILIES:
        raise ExportError(f"to: {name!r}; it must be one of {', '.join(FAMILIES)}.{instead(name, FAMILIES)}")
    return source(name)


def instead(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among the known ones."""
    return " That one is read, and never written." if name in SOURCES else did_you_mean(name, known)


@cache
def source(name: str) -> Any:
    """The family of one of FAMILIES or SOURCES."""
    return importlib.import_module(f"hybridlm.export.families.{name}").FAMILY


def fitting(stack: Stack) -> dict[str, list[str]]:
    """{family: its misfits}, of all that can be written, in the order of FAMILIES."""
    return {name: family(name).misfits(stack) for name in FAMILIES}
