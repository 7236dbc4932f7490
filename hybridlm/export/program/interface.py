"""What goes into a program and what comes out: tensors in one order, each with a name, a dtype and a shape.

A shape is of numbers and symbols: b rows, t tokens of a call, s tokens that a row can hold at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.memory import dtype_name
from hybridlm.compose.model import HybridLM
from hybridlm.state import Layer, LayerState

ROWS, TOKENS, CAPACITY = "b", "t", "s"
SYMBOLS = {
    ROWS: "rows of the batch, 1 or more",
    TOKENS: "tokens of a call, 1 or more, pads included",
    CAPACITY: "tokens that a row can hold at most, chosen where the first state is made",
}
FAR = 1 << 40  # tokens, more than any window has


@dataclass(frozen=True)
class Port:
    """A tensor that goes in or comes out."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def zeros(self, sizes: Mapping[str, int]) -> Tensor:
        """Zeros, of these sizes."""
        return torch.zeros([sizes[n] if isinstance(n, str) else n for n in self.shape], dtype=self.dtype)

    def dims(self) -> dict[int, str]:
        """{axis: symbol}."""
        return {axis: n for axis, n in enumerate(self.shape) if isinstance(n, str)}

    def to_dict(self) -> dict[str, Any]:
        """For the file that describes the programs."""
        return {"name": self.name, "dtype": dtype_name(self.dtype), "shape": list(self.shape)}


@dataclass(frozen=True)
class Interface:
    """The ports of both programs, in order.

    state: `position`, valid tokens of each row so far, then what every layer remembers; at first all of it is 0.
    """

    read: Mapping[str, tuple[Port, ...]]
    answer: Mapping[str, Port]
    state: tuple[Port, ...]

    def inputs(self, program: str) -> tuple[Port, ...]:
        """Of "prefill" or "step"."""
        return (*self.read[program], *self.state)

    def outputs(self, program: str) -> tuple[Port, ...]:
        """Of "prefill" or "step": the answer, then the next state."""
        return (self.answer[program], *(Port(f"next.{p.name}", p.dtype, p.shape) for p in self.state))

    def empty(self, rows: int, capacity: int) -> list[Tensor]:
        """The state before anything was read."""
        return [port.zeros({ROWS: rows, CAPACITY: capacity}) for port in self.state]

    def to_dict(self, suffix: str) -> dict[str, Any]:
        """What the file that describes the programs says of them."""
        programs = {
            name: {
                "file": f"{name}{suffix}",
                "inputs": [port.to_dict() for port in self.inputs(name)],
                "outputs": [port.to_dict() for port in self.outputs(name)],
            }
            for name in self.read
        }
        state = [{**port.to_dict(), "initial": 0} for port in self.state]
        return {"symbols": SYMBOLS, "programs": programs, "state": state}


def interface_of(model: HybridLM) -> Interface:
    """The ports of a model's programs. Where two capacities make two sizes, the size is the capacity."""
    near, far = (_tensors(sketch(model, capacity)) for capacity in (FAR, FAR + 1))
    sized = [(name, tensor.dtype, zip(tensor.shape, far[name].shape, strict=True)) for name, tensor in near.items()]
    layers = [
        Port(name, dtype, (ROWS, *(n if n == m else CAPACITY for n, m in list(sizes)[1:])))
        for name, dtype, sizes in sized
    ]
    read = {"prefill": _read(model, TOKENS), "step": _read(model, 1)[:1]}
    answer = {"prefill": _answer(model, TOKENS), "step": _answer(model, 1)}
    return Interface(read, answer, (Port("position", torch.int64, (ROWS,)), *layers))


def sketch(model: HybridLM, capacity: int = FAR) -> list[Layer]:
    """The layers of an empty state of one row, without memory."""
    return [block.init_state(1, capacity, device="meta", dtype=model.embed.weight.dtype) for block in model.blocks]


def _read(model: HybridLM, tokens: int | str) -> tuple[Port, Port]:
    """ids or signals, and which of them are real."""
    spec = model.spec
    valid = Port("valid", torch.bool, (ROWS, tokens))
    if spec.reads_tokens:
        return Port("ids", torch.int64, (ROWS, tokens)), valid
    return Port("signals", model.embed.weight.dtype, (ROWS, tokens, spec.input.channels)), valid


def _answer(model: HybridLM, tokens: int | str) -> Port:
    """Logits of tokens or classes, or numbers; of a row where they are pooled, else of each token."""
    spec = model.spec
    each = (tokens,) if spec.output.pool == "none" else ()
    name = "numbers" if spec.output.type == "regress" else "logits"
    return Port(name, model.embed.weight.dtype, (ROWS, *each, spec.outputs))


def _tensors(layers: list[Layer]) -> dict[str, Tensor]:
    """{layers.3.k: tensor}, named and ordered as in a state that was saved."""
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        _collect(layer, f"layers.{i}", found)
    return found


def _collect(layer: Layer, prefix: str, found: dict[str, Tensor]) -> None:
    if isinstance(layer, LayerState):
        found.update({f"{prefix}.{name}": tensor for name, tensor in layer.tensors().items()})
        return
    for i, part in enumerate(layer):
        _collect(part, f"{prefix}.{i}", found)
