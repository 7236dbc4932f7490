"""Reading somebody else's config.json: every field is used, known to be without effect, or refused by its name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlm.checks import LARGEST
from hybridlm.errors import ExportError

NEUTRAL = frozenset(
    """
    architectures model_type _name_or_path _commit_hash auto_map transformers_version dtype torch_dtype use_cache
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    initializer_range max_position_embeddings attention_dropout hidden_dropout residual_dropout embedding_dropout
    resid_pdrop embd_pdrop output_attentions output_hidden_states output_router_logits router_aux_loss_coef return_dict
    torchscript use_bfloat16 is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size pruned_heads
    finetuning_task problem_type id2label label2id task_specific_params chunk_size_feed_forward num_logits_to_keep
    gradient_checkpointing tie_encoder_decoder pretraining_tp attn_implementation _attn_implementation
    keys_to_ignore_at_inference max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty
    length_penalty num_beams num_return_sequences
    """.split()  # noqa: SIM905 - names, to be read
)
"""Fields that change no logits of a loaded model in evaluation."""

_MISSING = object()
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
MOST = sys.float_info.max
FAULTS, LONG = 30, 300  # that an error lists, and characters of each


def listed(faults: Sequence[str]) -> str:
    """Faults, a line each: of many the first ones, of long ones the beginning."""
    lines = [fault if len(fault) <= LONG else f"{fault[:LONG]}..." for fault in faults[:FAULTS]]
    more = [f"and {len(faults) - FAULTS} more"] if len(faults) > FAULTS else []
    return "\n  ".join([*lines, *more])


class Fields:
    """A config.json, of which every field has to be accounted for.

    where: the file, for messages. `take` and `must` note what does not fit; `done` raises all of it at once. A field
    that is unknown and null says nothing. notes: what whoever imports should know, and that changes no logits.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = dict(config), where
        self.read: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._inner: dict[str, Fields] = {}

    def __contains__(self, name: str) -> bool:
        return self.config.get(name) is not None

    def take(self, name: str, default: Any = _MISSING, kind: type | tuple[type, ...] = object) -> Any:
        """The value of a field. default: of one that is missing, null or wrong; without any it has to be there."""
        self.read.add(name)
        value = self.config.get(name)
        if value is None:
            if default is _MISSING:
                self.problems.append(f"{name}: missing, and the model cannot be read without it")
                return None
            return default
        numbers = kind in (int, float) and isinstance(value, bool)
        if numbers or not isinstance(value, (int, float) if kind is float else kind):
            wanted = " or ".join(KINDS[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
            self.problems.append(f"{name}: {value!r}; it has to be {wanted}")
            return None if default is _MISSING else default
        if isinstance(value, int | float) and not -MOST <= value <= MOST:
            self.problems.append(f"{name}: {value!r}; it has to be a finite number")
            return None if default is _MISSING else default
        return value

    def whole(self, name: str, default: Any = _MISSING, low: int = 1, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`; where it is not, the default, or `low`, so that reading goes on."""
        value, instead = self.take(name, default, int), low if default is _MISSING else default
        if value is not None and not low <= value <= high:
            self.problems.append(f"{name}: {value}; it has to be from {low} to {high}")
            return instead
        return instead if value is None else value

    def several(self, name: str, default: list[Any], kind: type | tuple[type, ...] = str) -> list[Any]:
        """A list of such; where it is none, the default."""
        values = self.take(name, default, list)
        if wrong := [value for value in values if isinstance(value, bool) or not isinstance(value, kind)]:
            self.problems.append(f"{name}: {wrong[0]!r} cannot be in it")
            return default
        return values

    def inside(self, name: str) -> Fields:
        """The fields of a mapping in a field, which are told with these."""
        if name not in self._inner:
            self._inner[name] = Fields(self.take(name, {}, dict), f"{name}.")
        return self._inner[name]

    def null(self, name: str) -> bool:
        """Whether a field is there and says null, which some families tell from one that is missing."""
        return name in self.config and self.config[name] is None

    def must(self, name: str, *values: Any, default: Any = _MISSING, why: str = "") -> None:
        """Refuse any other value of a field. default: what it means if it is missing; without any, the first value."""
        value = self.take(name, values[0] if default is _MISSING else default)
        if value not in values:
            known = " or ".join(repr(one) for one in values)
            self.problems.append(f"{name}: {value!r}; only {known} can be read{': ' + why if why else ''}")

    def neutral(self, *names: str) -> None:
        """Fields of this family that change no logits."""
        self.read.update(names)

    def refuse(self, problem: str) -> None:
        """Something else that does not fit, told with the rest."""
        self.problems.append(problem)

    def note(self, said: str) -> None:
        """Something that fits, and may surprise."""
        self.notes.append(said)

    def done(self) -> None:
        """ExportError with everything that does not fit, unknown fields among it."""
        if found := self._faults():
            raise ExportError(f"{self.where}: it cannot be read:\n  {listed(found)}")

    def _faults(self) -> list[str]:
        unknown = [name for name in self.config if name in self and name not in self.read and name not in NEUTRAL]
        said = "is unknown, and may change the mathematics"
        found = [*self.problems, *(f"{name}: {self.config[name]!r} {said}" for name in unknown)]
        return found + [f"{inner.where}{fault}" for inner in self._inner.values() for fault in inner._faults()]
