"""Other people's notations for a stack of layers, read only when a spec asks for one by name.

    notation: megatron                    # --hybrid-layer-pattern, hybrid_override_pattern of Nemotron-H
    pattern: "M-M*-"

    notation: layer_types                 # a list in a transformers config.json, or its entries with commas between
    pattern: [sliding_attention, full_attention]

    notation: attn_layer_idx              # these keys of a mamba_ssm config.json
    pattern: {n_layer: 24, attn_layer_idx: [3, 11], ssm_cfg: {layer: Mamba2}}

`read` returns a pattern in our language and the blocks it implies, as plain definitions. A definition of the same name
in the spec's own `blocks` replaces the implied one whole. Nothing is guessed: what a notation does not say, such as
which mixer transformers means by linear_attention, the spec has to say in `blocks`.

megatron: a symbol is one sublayer, so a mixer has no MLP. M is block M (mamba2), G is G (gated_deltanet), * is A
(attention), + is L (mla), - is an MLP alone, E is E (an MLP alone, of type moe). D (DeepSeek sparse attention), the
pipeline mark | and the multi-token prediction mark / are refused.
layer_types: a layer is a mixer and an MLP; its block has the name of its type.
attn_layer_idx: attention at the layers listed, from 0, no MLPs; the others are block m (mamba) or, with
`ssm_cfg: {layer: Mamba2}`, M (mamba2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hybridlm.compose.caret import describe, quote
from hybridlm.compose.pattern import MAX_LAYERS, MLP_ALONE, compact, parse
from hybridlm.errors import PatternError, did_you_mean

Blocks = dict[str, dict[str, Any]]


def read(source: Any, notation: str, defined: Iterable[str] = ()) -> tuple[str, Blocks]:
    """A pattern in our language, and the definitions of its blocks that are not in `defined`, the spec's own names.

    `source` is text, a list or a mapping, as the notation has it (see the module's text). PatternError: an unknown
    notation, a symbol that it does not have, or one that we have no mixer for; the message names the position.
    """
    if not isinstance(notation, str) or notation not in _READERS:
        choices = ", ".join(_READERS)
        raise PatternError(
            f"notation: unknown {notation!r}; allowed: {choices}.{did_you_mean(str(notation), _READERS)}"
        )
    defined = set(defined)
    names, blocks = _READERS[notation](source, defined)
    if not names:
        raise PatternError("pattern: empty; a stack has at least one layer")
    if len(names) > MAX_LAYERS:
        raise PatternError(f"pattern: {len(names):,} layers; at most {MAX_LAYERS:,}")
    implied = {name: blocks[name] for name in dict.fromkeys(names) if name in blocks and name not in defined}
    text = compact(names)
    parse(text)  # the limits on names and text hold here too
    return text, implied


def _sublayer(mixer: str) -> dict[str, Any]:
    return {"mixer": {"type": mixer}, "mlp": "none"}


# ----------------------------------------------------------------------------------------------------------- megatron
_MEGATRON = {"M": "M", "G": "G", "*": "A", "+": "L", "-": MLP_ALONE, "E": "E"}
_MEGATRON_BLOCKS: Blocks = {
    "M": _sublayer("mamba2"),
    "G": _sublayer("gated_deltanet"),
    "A": _sublayer("attention"),
    "L": _sublayer("mla"),
    "E": {"mixer": "none", "mlp": {"type": "moe"}},
}
_MEGATRON_REFUSED = {
    "D": "'D' is DeepSeek sparse attention, for which there is no mixer",
    "|": "'|' marks a pipeline stage; leave it out, a pattern says nothing of how a model is spread over devices",
    "/": "'/' starts the multi-token prediction heads, which are not supported; leave them out",
}


def _megatron(source: Any, defined: set[str]) -> tuple[list[str], Blocks]:
    if not isinstance(source, str):
        raise PatternError(f"pattern: notation megatron is text such as 'M-M*-', got {type(source).__name__}")
    for at, symbol in enumerate(source[: MAX_LAYERS + 1]):
        if symbol in _MEGATRON_REFUSED:
            raise PatternError(quote(source, at, _MEGATRON_REFUSED[symbol]))
        if symbol not in _MEGATRON and not symbol.isspace():
            reason = f"{describe(symbol)} is no symbol of notation megatron, which has {' '.join(_MEGATRON)}."
            raise PatternError(quote(source, at, reason + did_you_mean(symbol, _MEGATRON)))
    return [_MEGATRON[symbol] for symbol in source if not symbol.isspace()], _MEGATRON_BLOCKS


# -------------------------------------------------------------------------------------------------------- layer_types
_LAYER_TYPES = {
    "full_attention": "attention",
    "attention": "attention",
    "sliding_attention": "sliding_window",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "conv": "short_conv",
}
_LAYER_TYPES_REFUSED = {
    "linear_attention": "names a family (Mamba, Mamba-2, gated DeltaNet, ...); say which in blocks, such as "
    "blocks: {linear_attention: {mixer: {type: mamba2}}}",
    "mlp": "is a layer of one sublayer, as in Nemotron-H; write the stack with `notation: megatron`",
    "moe": "is a layer of one sublayer, as in Nemotron-H; write the stack with `notation: megatron`",
}


def _layer_types(source: Any, defined: set[str]) -> tuple[list[str], Blocks]:
    types = [part.strip() for part in source.split(",")] if isinstance(source, str) else source
    if not isinstance(types, (list, tuple)):
        raise PatternError(f"pattern: notation layer_types is a list of layer types, got {type(source).__name__}")
    for at, layer in enumerate(types):
        if not isinstance(layer, str) or layer not in {*_LAYER_TYPES, *defined}:
            raise PatternError(f"pattern[{at}]: {_complaint(layer, defined)}")
    return list(types), {name: {"mixer": {"type": mixer}} for name, mixer in _LAYER_TYPES.items()}


def _complaint(layer: Any, defined: set[str]) -> str:
    """What is wrong with an entry of layer_types."""
    if not isinstance(layer, str):
        return f"a layer type is text, got {layer!r}"
    if layer in _LAYER_TYPES_REFUSED:
        return f"{layer!r} {_LAYER_TYPES_REFUSED[layer]}"
    known = [*_LAYER_TYPES, *sorted(defined)]
    return f"unknown layer type {layer!r}; known: {', '.join(known)}.{did_you_mean(layer, known)}"


# ----------------------------------------------------------------------------------------------------- attn_layer_idx
_SSM_LAYERS = {"Mamba1": ("m", "mamba"), "Mamba2": ("M", "mamba2")}
_KEYS = ("n_layer", "attn_layer_idx", "ssm_cfg")


def _attn_layer_idx(source: Any, defined: set[str]) -> tuple[list[str], Blocks]:
    if not isinstance(source, Mapping):
        example = "{n_layer: 24, attn_layer_idx: [3, 11]}"
        kind = type(source).__name__
        raise PatternError(f"pattern: notation attn_layer_idx is a mapping such as {example}, got {kind}")
    for key in source:
        if key not in _KEYS:
            near = did_you_mean(str(key), _KEYS)
            raise PatternError(f"pattern.{key}: unknown key; allowed: {', '.join(_KEYS)}.{near}")
    depth = _whole(source.get("n_layer"), "pattern.n_layer", 1, MAX_LAYERS)
    name, mixer = _ssm_layer(source.get("ssm_cfg", {}))
    names = [name] * depth
    for at in _attention_layers(source.get("attn_layer_idx"), depth):
        names[at] = "A"
    return names, {name: _sublayer(mixer), "A": _sublayer("attention")}


def _ssm_layer(config: Any) -> tuple[str, str]:
    """Block name and mixer of the layers that are not attention; Mamba-1 where mamba_ssm would take it too."""
    if not isinstance(config, Mapping) or set(config) - {"layer"}:
        raise PatternError("pattern.ssm_cfg: allowed is {layer: Mamba1 | Mamba2}; other settings belong into blocks")
    layer = config.get("layer", "Mamba1")
    if not isinstance(layer, str) or layer not in _SSM_LAYERS:
        near = did_you_mean(str(layer), _SSM_LAYERS)
        raise PatternError(f"pattern.ssm_cfg.layer: unknown {layer!r}; allowed: {', '.join(_SSM_LAYERS)}.{near}")
    return _SSM_LAYERS[layer]


def _attention_layers(indices: Any, depth: int) -> list[int]:
    if not isinstance(indices, (list, tuple)):
        raise PatternError(f"pattern.attn_layer_idx: expected a list of layer numbers from 0, got {indices!r}")
    found: list[int] = []
    for at, index in enumerate(indices[: depth + 1]):  # one more than fit, so that the last is a repetition
        path = f"pattern.attn_layer_idx[{at}]"
        found.append(_whole(index, path, 0, depth - 1))
        if index in found[:-1]:
            raise PatternError(f"{path}: layer {index} stands here twice")
    return found


def _whole(value: Any, path: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PatternError(f"{path}: expected a whole number from {low} to {high}, got {value!r}")
    return value


_READERS: dict[str, Callable[[Any, set[str]], tuple[list[str], Blocks]]] = {
    "megatron": _megatron,
    "layer_types": _layer_types,
    "attn_layer_idx": _attn_layer_idx,
}
