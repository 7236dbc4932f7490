"""Functions with a gradient of their own that torch.compile traces: what PyTorch 2.11 asks of them, see decision 14."""

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from hybridlm.ops.causal_conv.compiled import Convolution
from hybridlm.ops.causal_conv.reference import Taps
from hybridlm.ops.linear_attention.by_chunk import AtOnce, ByChunk
from hybridlm.ops.long_conv.reference import LongConv
from hybridlm.ops.rnn.mapped import Mapped, MappedGradient
from hybridlm.ops.s5_scan.reference import _Scan as S5Scan
from hybridlm.ops.selective_scan.reference import _Scan as SelectiveScan
from hybridlm.ops.split import _Split
from hybridlm.ops.spread import _Spread
from hybridlm.ops.toeplitz_attention.by_chunk import ByChunk as ToeplitzAttention
from hybridlm.registry import mixers, mlps

EAGER = {ByChunk, Taps, Mapped, MappedGradient}
"""Never traced: by hand on a CPU (ops.by_hand), or inside an op that a compiler does not look into."""


class Results(TorchFunctionMode):
    """Every tensor that a function of PyTorch gives back, as often as one does."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        pieces = result if isinstance(result, (tuple, list)) else [result]
        self.seen += [(resolve_name(function), piece) for piece in pieces if isinstance(piece, torch.Tensor)]
        return result


class Unused:
    """A ctx that keeps nothing."""

    def save_for_backward(self, *tensors):
        """For no backward pass."""


def drawn(*shape):
    return torch.rand(shape)


def linear_attention():
    return (
        drawn(2, 3, 4, 1, 5),
        drawn(2, 3, 4, 1, 5),
        drawn(2, 3, 4, 1, 2, 6),
        -drawn(2, 3, 4, 1, 2),
        drawn(2, 1, 2, 6, 5),
    )


def selective_scan(zoh):
    u, dt, B, C = drawn(4, 2, 3, 5), drawn(4, 2, 3, 5), drawn(4, 2, 3, 6), drawn(4, 2, 3, 6)
    return u, dt, -drawn(6, 5), B, C, None, zoh, drawn(2, 6, 5)


def s5_scan(t):
    return torch.complex(drawn(2, t, 3), drawn(2, t, 3)), torch.complex(drawn(3), drawn(3)).to(torch.complex128), None


def toeplitz_attention(z, state=True, within=True, keep=None):
    """z chunks of 4 tokens."""
    qkv = [drawn(2, 3, 2, z, 4) for _ in range(3)]
    system = drawn(2, 4, 4) if within else None, drawn(2, 4, 6), drawn(2, 6, 4), drawn(2, 3, 2)
    return *qkv, *system, drawn(2, 3, 3, 2, 3, 2) if state else None, torch.tensor([z, 0]) if state else None, keep


ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2]] * 2)
CALLS = {
    "LongConv": (LongConv, lambda: (drawn(2, 7, 3), drawn(3, 7), None, None)),
    "LongConv, D": (LongConv, lambda: (drawn(2, 7, 3), drawn(3, 7), drawn(3), None)),
    "LongConv, packed": (LongConv, lambda: (drawn(2, 7, 3), drawn(3, 7), None, ids)),
    "LongConv, packed, D": (LongConv, lambda: (drawn(2, 7, 3), drawn(3, 7), drawn(3), ids)),
    "LongConv, one token": (LongConv, lambda: (drawn(2, 1, 3), drawn(3, 1), None, None)),
    "LongConv, bfloat16": (LongConv, lambda: (drawn(2, 7, 3).bfloat16(), drawn(3, 7), None, None)),
    "S5": (S5Scan, lambda: s5_scan(7)),
    "selective scan": (SelectiveScan, lambda: selective_scan(False)),
    "selective scan, zoh": (SelectiveScan, lambda: selective_scan(True)),
    "AtOnce": (AtOnce, linear_attention),
    "Toeplitz": (ToeplitzAttention, lambda: toeplitz_attention(3)),
    "Toeplitz, one chunk": (ToeplitzAttention, lambda: toeplitz_attention(1)),
    "Toeplitz, no state": (ToeplitzAttention, lambda: toeplitz_attention(3, state=False)),
    "Toeplitz, one chunk, no state": (ToeplitzAttention, lambda: toeplitz_attention(1, state=False)),
    "Toeplitz, packed": (ToeplitzAttention, lambda: toeplitz_attention(3, within=False, keep=torch.ones(2, 3) > 0)),
    "convolution": (Convolution, lambda: (drawn(2, 7, 3), drawn(2, 3, 3), drawn(4, 3), None, False)),
    "convolution, bias": (Convolution, lambda: (drawn(2, 7, 3), drawn(2, 3, 3), drawn(4, 3), drawn(3), False)),
    "convolution, silu": (Convolution, lambda: (drawn(2, 7, 3), drawn(2, 3, 3), drawn(4, 3), drawn(3), True)),
    "split": (_Split, lambda: (drawn(2, 7, 6), [2, 4])),
    "split, one part": (_Split, lambda: (drawn(2, 7, 6), [6])),
    "spread": (_Spread, lambda: (drawn(3), torch.Size([2, 7, 3]))),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_returned_comes_from_one_operation_alone(call):
    function, draw = CALLS[call]
    arguments = draw()
    with torch.no_grad(), Results() as results:
        ctx = () if "setup_context" in vars(function) else (Unused(),)
        outputs = function.forward(*ctx, *arguments)
    for output in outputs if isinstance(outputs, tuple) else [outputs]:
        made_by = [name for name, result in results.seen if result is output]
        assert len(made_by) == 1, f"the same tensor comes from {made_by}"


def test_every_function_is_here():
    assert all(part.error is None for part in (*mixers.listing(), *mlps.listing()))  # so all are imported
    ours = {found for found in torch.autograd.Function.__subclasses__() if found.__module__.startswith("hybridlm.")}
    assert ours == EAGER | {function for function, _ in CALLS.values()}
