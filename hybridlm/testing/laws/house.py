"""Weights on disk, hooks, and the books: what a mixer says that it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.registry import mixers
from hybridlm.state import load_state
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import Result, holds, same
from hybridlm.testing.script import Call, play
from hybridlm.testing.subject import Solo, Subject, memory

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Hold modules and are not called, empty ones too."""

ENDS = ("embed", "lm_head")
"""Linear layers around the stack of a model: the scene takes the place of what `embed` gives."""


@law("C18", "weights and state, saved and loaded, are the same bits", of=Solo)
def reload(s: Solo) -> Iterator[Result]:
    held = dict(s.module.state_dict())
    blob = safetensors.torch.save({name: tensor.contiguous() for name, tensor in held.items()})
    other = s.twin()
    other.module = s.build().to(s.device, s.dtype)
    other.module.load_state_dict(safetensors.torch.load(blob), strict=True)
    for name, tensor in other.module.state_dict().items():
        yield same(f"weight {name}", tensor, held[name])
    yield same("outputs", other.run(s.scene)[0], s.run(s.scene)[0])
    missing = {name for name, _ in s.module.named_buffers()} - set(held)
    yield holds("buffers", not missing, f"not saved: {', '.join(sorted(missing))}")
    complex_ = [name for name, tensor in held.items() if tensor.is_complex()]
    yield holds("real numbers", not complex_, f"complex: {', '.join(complex_)}; safetensors holds none of complex128")
    yield from state_on_disk(s)


def state_on_disk(s: Solo) -> Iterator[Result]:
    n = min(11, s.tokens - 3)
    state = play(s, Call.piece(range(s.rows), 0, n), s.init_state(s.rows))[1]
    with tempfile.TemporaryDirectory() as folder, registered(s.mixer):
        state.save(Path(folder) / "state")
        loaded = load_state(Path(folder) / "state", device=s.device)
    for name, tensor in memory(state).items():
        yield same(f"state {name}", memory(loaded)[name], tensor)
    yield same("position", loaded.position, state.position)
    rest = s.scene[:, n:]
    yield same("going on", s.run(rest, loaded)[0], s.run(rest, state)[0])


@contextmanager
def registered(mixer: type) -> Iterator[None]:
    """A saved state finds its class by name: give it one if it has none."""
    if mixer.State.kind in mixers:
        yield
        return
    mixers.register(mixer.State.kind)(mixer)
    try:
        yield
    finally:
        mixers.unregister(mixer.State.kind)


@law("C23", "a hook on every leaf module fires, and a change to a linear layer's output is heard")
def hooks(s: Subject) -> Iterator[Result]:
    x = s.scene[:, :12]
    whole, decoded = s.run(x)[0], decode(s)
    for name, module in s.module.named_modules():
        if next(module.children(), None) is None and not isinstance(module, CONTAINERS):
            yield from fires(s, name, module)
        if isinstance(module, nn.Linear) and name not in ENDS:
            handle = module.register_forward_hook(lambda module, inputs, output: output + 0.1 * output.roll(1, -1))
            heard = {"a call": not torch.equal(s.run(x)[0], whole), "decoding": not torch.equal(decode(s), decoded)}
            handle.remove()
            for case, fact in heard.items():
                yield holds(f"a change to {name}, {case}", fact, "makes no difference: is its weight read past it?")


def decode(s: Subject) -> torch.Tensor:
    """The output of the 6th token, by itself."""
    state = s.run(s.scene[:, :5], s.init_state(s.rows))[1]
    return s.run(s.scene[:, 5:6], state)[0]


def fires(s: Subject, name: str, module: nn.Module) -> Iterator[Result]:
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    for case, (x, state) in {
        "no state": (s.scene[:, :12], None),
        "with a state": (s.scene[:, :12], s.init_state(s.rows)),
        "one token": (s.scene[:, :1], s.init_state(s.rows)),
    }.items():
        calls.clear()
        s.run(x, state)
        yield holds(f"{name}, {case}", bool(calls), "its forward was not called")
    handle.remove()


@law("C24", "cost() says what is: parameters, bytes of state, FLOPs of matrix products", of=Solo)
def accounting(s: Solo) -> Iterator[Result]:
    cost = s.mixer.cost(s.config, s.width)
    parameters = sum(parameter.numel() for parameter in s.module.parameters())
    yield holds("parameters", cost.parameters == parameters, f"cost says {cost.parameters}, there are {parameters}")
    for max_length in (1, 3, 64, 1000):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            layer = s.module.init_state(2, max_length, dtype=dtype, device="meta")
            said = cost.state(max_length, dtype.itemsize).total
            fact = f"cost says {said}, there are {layer.nbytes / 2:g}"
            yield holds(f"bytes of state for {max_length}, {dtype}", 2 * said == layer.nbytes, fact)
    for tokens, past in ((1, 0), (17, 0), (64, 0), (200, 0), (1, 9), (5, 9), (70, 40), (1, 150)):
        yield flops(s, tokens, past)


def flops(s: Solo, tokens: int, past: int) -> Result:
    """Matrix products as PyTorch's counter sees them, within 2%."""
    said = s.mixer.cost(s.config, s.width).forward(tokens, past).matmul
    plain = s.twin(backend="reference")
    state = plain.run(s.draw(1, past, 18), s.init_state(1, tokens + past))[1] if past else None
    with FlopCounterMode(display=False) as counter:
        plain.run(s.draw(1, tokens, 19), state)
    counted = counter.get_total_flops()
    off = abs(said - counted) / max(counted, 1)
    detail = "" if off <= 0.02 else f"cost says {said:g}, counted {counted}"
    return Result("", f"FLOPs of {tokens} after {past}", off, off, 0.02, "failed" if detail else "passed", detail)
