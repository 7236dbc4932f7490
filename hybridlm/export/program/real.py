"""Graphs without complex numbers, transforms and systems of equations, of which ONNX has none.

What depends on the weights alone, as the kernels of S4 and its kin do, is computed once and kept. The rest is rewritten
node by node: a complex number as two real ones, a transform of a piece as a product with its matrix, a triangular
system row by row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError

aten = torch.ops.aten
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True)
class Pair:
    """A complex tensor as two real ones of its shape."""

    re: Tensor
    im: Tensor


class Real(nn.Module):
    """`Advance`, traced and called as it was, whose graph is rewritten while it is traced again."""

    def __init__(self, model: HybridLM, program: ExportedProgram):
        super().__init__()
        self.model = model
        self.traced = settled(program.run_decompositions({}).module(check_guards=False))

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return _Rewriter(self.traced, garbage_collect_values=False).run(*inputs)

    def weights(self) -> dict[str, Tensor]:
        """As of `Advance`."""
        return {f"traced.{name}": tensor for name, tensor in self.traced.state_dict(keep_vars=True).items()}


def needed(program: ExportedProgram) -> bool:
    """Whether a graph has anything of this."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes]
    return any(_is_complex(node.meta.get("val")) or node.target in REWRITTEN for node in nodes)


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


# ------------------------------------------------------------------------------------------- what the weights settle
def settled(module: fx.GraphModule) -> fx.GraphModule:
    """The same with what complex numbers make of the weights alone as a constant, in real pairs."""
    for node in [node for node in module.graph.nodes if node.target is aten._assert_tensor_metadata.default]:
        module.graph.erase_node(node)  # it would keep alive what it looks at
    values, tainted = _constants(module)
    ends = [node for node in tainted if any(user not in values for user in node.users)]
    for i, node in enumerate(node for node in ends if isinstance(values[node], Tensor)):
        value, name = values[node], f"settled_{i}"
        real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        module.register_buffer(name, real.clone(memory_format=torch.contiguous_format))
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
            if value.is_complex():
                constant = module.graph.call_function(aten.view_as_complex.default, (constant,))
        node.replace_all_uses_with(constant)
    module.graph.eliminate_dead_code()
    return fx.GraphModule(module, module.graph)  # with those weights alone that are still read


def _constants(module: fx.GraphModule) -> tuple[dict[fx.Node, Any], list[fx.Node]]:
    """The values of nodes that no input reaches, and those of them that are complex or come from such."""
    values: dict[fx.Node, Any] = {}
    tainted: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
            if _is_complex(values[node]) or any(source in tainted for source in node.all_input_nodes):
                tainted[node] = None
    return values, list(tainted)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


# ------------------------------------------------------------------------------------------------------------ rewriting
class _Rewriter(fx.Interpreter):
    """Runs a graph with pairs in place of complex tensors."""

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target in REWRITTEN:
            return REWRITTEN[target](*args, **kwargs)
        if not any(isinstance(value, Pair) for value in tree_leaves((args, kwargs))):
            return super().call_function(target, args, kwargs)
        if target in OF_PAIRS:
            return OF_PAIRS[target](*args, **kwargs)
        if target not in PART_BY_PART:
            raise ExportError(f"a layer takes {target} of complex numbers, which no rule says in real ones")
        parts = (tree_map(_part(name), (args, _in_real(kwargs))) for name in ("re", "im"))
        return Pair(*(super(_Rewriter, self).call_function(target, *part) for part in parts))


def _part(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(value, name) if isinstance(value, Pair) else value


def _in_real(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: REAL.get(value, value) if name == "dtype" else value for name, value in kwargs.items()}


def _pair(value: Pair | Tensor | float) -> Pair:
    """A real tensor or number as a complex one."""
    if isinstance(value, Pair):
        return value
    return Pair(value, torch.zeros_like(value) if isinstance(value, Tensor) else 0.0)


def _multiply(a: Any, b: Any) -> Pair:
    if not isinstance(a, Pair):
        a, b = b, a
    if not isinstance(b, Pair):
        return Pair(a.re * b, a.im * b)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _add(a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(a.re + b.re, a.im + b.im)


def _subtract(a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(a.re - b.re, a.im - b.im)


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(torch.where(condition, a.re, b.re), torch.where(condition, a.im, b.im))


def _rfft(x: Tensor, n: int) -> Pair:
    """Of x (..., t), filled up with zeros to n: sum_j x_j e^(-2 pi i j k / n) for k <= n / 2."""
    angle = _angles(x.shape[-1], n)
    return Pair(x @ angle.cos().to(x.dtype), -(x @ angle.sin().to(x.dtype)))


def _irfft(x: Pair, n: int) -> Tensor:
    """The way back, (..., n): of the k that stand for two, n - k being the other, twice the real part."""
    angle = _angles(n, n).T
    k = torch.arange(n // 2 + 1, dtype=torch.float64)[:, None]
    share = torch.where((k == 0) | (2 * k == n), 1 / n, 2 / n)
    return x.re @ (share * angle.cos()).to(x.re.dtype) - x.im @ (share * angle.sin()).to(x.im.dtype)


def _angles(t: int, n: int) -> Tensor:
    """2 pi j k / n for j < t and k <= n / 2, float64; whole turns are left out before they are rounded."""
    turns = torch.arange(t)[:, None] * torch.arange(n // 2 + 1) % n
    return turns.double() * (2 * math.pi / n)


def _solve(A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """X with A X = B, A (..., c, c) lower triangular: row i from the rows before it."""
    if upper or not left:
        raise ExportError("a layer solves a triangular system that no rule says row by row")
    X = B[..., :0, :]
    for i in range(A.shape[-1]):
        row = B[..., i : i + 1, :] - A[..., i : i + 1, :i] @ X if i else B[..., :1, :]
        X = torch.cat([X, row if unitriangular else row / A[..., i : i + 1, i : i + 1]], dim=-2)
    return X


REWRITTEN: dict[Any, Callable] = {
    aten.complex.default: Pair,
    aten.view_as_complex.default: lambda x: Pair(*x.unbind(-1)),
    aten.view_as_real.default: lambda x: torch.stack([x.re, x.im], dim=-1),
    aten.fft_rfft.default: lambda x, n=None, dim=-1: _rfft(x, x.shape[-1] if n is None else n),
    aten.fft_irfft.default: lambda x, n: _irfft(x, n),
    aten.linalg_solve_triangular.default: _solve,
}
OF_PAIRS: dict[Any, Callable] = {
    aten.mul.Tensor: _multiply,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.where.self: _where,
    aten.addcmul.default: lambda a, b, c: _add(a, _multiply(b, c)),
    operator.getitem: operator.getitem,
    aten.unbind.int: lambda x, dim=0: [Pair(*one) for one in zip(x.re.unbind(dim), x.im.unbind(dim), strict=True)],
}
PART_BY_PART = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("neg", "default"), ("slice", "Tensor"), ("select", "int"), ("unsqueeze", "default"), ("squeeze", "dim"),
        ("cat", "default"), ("stack", "default"), ("view", "default"), ("reshape", "default"), ("expand", "default"),
        ("permute", "default"), ("transpose", "int"), ("clone", "default"), ("_to_copy", "default"), ("to", "dtype"),
        ("gather", "default"), ("flip", "default"), ("sum", "dim_IntList"), ("contiguous", "default"),
        ("index", "Tensor"),
    )
}  # fmt: skip
