"""What a CUDA graph is, on the CPU: the operations of a step, recorded once and then done again on the same memory.

Nothing of Python runs in a replay, so what the host baked in when it recorded shows: a position, a token, a length. And
what a GPU cannot record is refused here too: looking at a number, shapes that depend on numbers, constants of the host.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten.unique_consecutive,
    aten._unique2,
    aten._unique,
    aten.lift_fresh,
    aten.repeat_interleave,
}


LOOKS = ["item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"]


class NoLooking(TorchFunctionMode):
    """Refuses what turns a tensor into numbers, some of which passes by a dispatch mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in LOOKS:
            raise RuntimeError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records, with what came out. A recording must change nothing, so what it changed in place is put back."""

    def __init__(self):
        super().__init__()
        self.done, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode an operation that is made of others comes here before they do
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        refuse_waiting(func, args)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(value)
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    def _remember(self, tensor):
        at = tensor.untyped_storage().data_ptr()
        if at not in self.before:
            whole = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
            self.before[at] = whole, whole.clone()

    def put_back(self):
        for tensor, value in self.before.values():
            tensor.copy_(value)

    def replay(self):
        with torch.inference_mode():
            for func, args, kwargs, result in self.done:
                for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        assert old.shape == new.shape, f"{func} has a result of another shape"
                        old.copy_(new)


def refuse_waiting(func, args):
    packet = func.overloadpacket
    masks = packet in (aten.index, aten.index_put, aten.index_put_) and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    if packet in WAITS or masks:
        raise RuntimeError(f"{func} waits for the device")


class TapeRecorder:
    """In place of `CudaRecorder`. `log` says what was done."""

    log: list = []

    def __init__(self, device):
        self.device = device

    def warm(self, step):
        self.log.append("warm")
        step()

    def record(self, step):
        self.log.append("record")
        tape = Tape()
        try:
            with tape, NoLooking():
                step()
        finally:
            with torch.inference_mode():
                tape.put_back()

        def replay():
            self.log.append("replay")
            tape.replay()

        return replay
