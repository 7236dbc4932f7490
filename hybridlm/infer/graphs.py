"""Steps of decoding without the cost of launching them: recorded once as a CUDA graph, then replayed.

What a step reads and writes lies in a `Rig`: tensors that stay where they are. A model keeps the rigs of its last
calls, so that a call of the same sizes records nothing; a rig whose model has other weights, settings or modules than
when it recorded forgets its recordings.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable

import torch

from hybridlm.compose.model import HybridLM
from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.infer.rig import Recorder, Rig, again
from hybridlm.infer.sampling import Sampler
from hybridlm.ops import backend
from hybridlm.state import ModelState, leaves

WORTH = 16  # new tokens from which on recording pays: it takes about as long as two steps, and 0.1 s
KEPT = 4  # rigs that a model keeps, and their states are at most this part of the device's memory:
SHARE = 1 / 16


class CudaRecorder:
    """Steps as CUDA graphs, on a stream of their own; the memory that they need in between is shared."""

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm(self, step: Callable[[], None]) -> None:
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                step()
            torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        mode = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self.device), torch.cuda.graph(graph, **mode):
            step()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on this device; None: nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


# ------------------------------------------------------------------------------------------------------------ the model
class Mark:
    """What the recordings of a model rest on, to notice when it is another one: memory, modules, settings."""

    def __init__(self, model: HybridLM):
        modules = list(model.modules())
        owned = [owner for one in modules for owner in (one._parameters, one._buffers, one._modules)]
        self._spec = model.spec
        self._owners = [(owner, len(owner)) for owner in owned]
        self._parts = [(owner, name, part) for owner in owned for name, part in owner.items()]
        self._memory = [(one, one.data_ptr()) for one in (*model.parameters(), *model.buffers())]
        self._configs = [(one, one.config) for block in model.blocks for one in block.mixers.values()]
        self._hooks = [hooks for one in modules for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._compiled = [(one.__dict__, id(one._compiled_call_impl)) for one in modules]

    @property
    def hooked(self) -> bool:
        """Whether hooks would have to be called, which a replay does not."""
        return any(self._hooks)

    def holds(self, model: HybridLM) -> bool:
        """Whether the model is what it was. Numbers that change in place do no harm: a replay reads them."""
        return (
            model.spec is self._spec
            and not self.hooked
            and all(len(owner) == size for owner, size in self._owners)
            and all(owner.get(name) is part for owner, name, part in self._parts)
            and all(tensor.data_ptr() == at for tensor, at in self._memory)
            and all(mixer.config is config for mixer, config in self._configs)
            and all(id(one.get("_compiled_call_impl")) == call for one, call in self._compiled)
        )


_marks: weakref.WeakKeyDictionary[HybridLM, Mark] = weakref.WeakKeyDictionary()


def mark_of(model: HybridLM) -> Mark:
    """The model's mark; the same object as long as the model is what it was."""
    mark = _marks.get(model)
    if mark is None or not mark.holds(model):
        mark = _marks[model] = Mark(model)
    return mark


def surroundings(device: torch.device) -> Hashable:
    """What a step depends on besides model, state and sampler."""
    kind = device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    exact = torch.are_deterministic_algorithms_enabled()
    return backend.preferred(), cast, torch.get_float32_matmul_precision(), exact


# ------------------------------------------------------------------------------------------------------- what is kept
_kept: weakref.WeakKeyDictionary[HybridLM, list[Rig]] = weakref.WeakKeyDictionary()


def wanted(model: HybridLM, cuda_graph: bool | None, steps: int) -> Mark | None:
    """The model's mark if its steps are to be recorded. cuda_graph None: where it pays.

    SpecError, UnsupportedError: asked for where nothing can be recorded.
    """
    device = model.embed.weight.device
    if cuda_graph is False or (cuda_graph is None and steps < WORTH):
        return None
    able = device.type == "cuda" or recorder_for(device) is not None
    if cuda_graph and not able:
        raise SpecError(f"cuda_graph: the model is on {device}, and a CUDA graph needs a GPU; leave it out")
    mark = mark_of(model) if able else None
    if cuda_graph and mark.hooked:
        raise UnsupportedError("cuda_graph: the model has forward hooks, which a replay does not call; remove them")
    return None if mark is None or mark.hooked else mark


def roomy(length: int) -> int:
    """A max_length for texts of about this length, so that they share a rig: at most an eighth more, in steps of 64."""
    step = max(64, 1 << (length.bit_length() - 4))
    return -(-length // step) * step


def empty_state(model: HybridLM, batch: int, length: int) -> ModelState:
    """An empty state for texts of about this length: the memory of a rig that the model keeps, or a new one."""
    length = roomy(length)
    for rig in _kept.get(model, ()):
        if rig.key[:2] == (batch, length) and rig.state.fingerprint == model.spec.fingerprint:
            return emptied(rig.state)
    return model.init_state(batch, length)


def emptied(state: ModelState) -> ModelState:
    """The same memory with nothing in it."""
    state = again(state)
    if tensors := [tensor for leaf in leaves(state.layers) for tensor in leaf.tensors().values()]:
        torch._foreach_zero_(tensors)
    state.cursor.restart()
    return state


def borrow(model: HybridLM, mark: Mark, state: ModelState, sampler: Sampler, stop: list[int]) -> Rig:
    """A rig that holds this state: one that the model keeps, or a new one around it. The state is consumed."""
    state.check()
    stops = max(8, 1 << (len(stop) - 1).bit_length()) if stop else 8
    dtypes = tuple(tensor.dtype for leaf in leaves(state.layers) for tensor in leaf.tensors().values())
    device = state.position.device
    key = (state.batch, state.max_length, sampler, stops, dtypes, device, surroundings(device))
    kept = _kept.get(model, [])
    rig = next((rig for rig in kept if rig.key == key and rig.mark is mark), None)
    if rig is None:
        with torch.no_grad():
            free = all(leaf.in_place for leaf in leaves(state.layers))
        rig = Rig.of(again(state) if free else state.detach(), model.spec.vocab_size, sampler, stops)
        rig.key, rig.mark, rig.recorder = key, mark, recorder_for(device)
    else:
        rig.state = again(rig.state)
        _copy(state, rig.state)
    kept[:] = [one for one in kept if one is not rig and one.state.cursor is not state.cursor]  # memory has one owner
    state.spent = True
    return rig


def _copy(source: ModelState, target: ModelState) -> None:
    """Every number of one state into the memory of the other, unless it is the same."""
    for old, new in zip(leaves(source.layers), leaves(target.layers), strict=True):
        for name, tensor in new.tensors().items():
            if tensor.data_ptr() != old.tensors()[name].data_ptr():
                tensor.copy_(old.tensors()[name].detach())
    if source.cursor is not target.cursor:
        target.cursor.copy_(source.cursor)


def keep(model: HybridLM, rig: Rig) -> None:
    """Give a rig back, for the model's next call of the same sizes; the oldest ones go."""
    limit = backend.memory(rig.state.position.device)
    kept = [rig, *_kept.get(model, ())][:KEPT]
    while kept and limit is not None and sum(one.state.nbytes for one in kept) > SHARE * limit:
        kept.pop()
    _kept[model] = kept


def release(model: HybridLM) -> None:
    """Free the memory of every rig that the model keeps: states, and what was recorded."""
    _kept.pop(model, None)


def warn_of(error: UnsupportedError) -> None:
    """Say once why it goes on without recording."""
    warnings.warn(f"{error}; going on without, which is slower", RuntimeWarning, stacklevel=4)
