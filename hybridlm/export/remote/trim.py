"""What is cut out of our modules on the way: how an op chooses a backend, shapes in annotations, initial values.

A cut takes a stretch of text away, or puts the text of another node in its place. What is left computes the same as
backend "reference" does, on weights that a file brings.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from hybridlm.export.remote.scopes import arguments
from hybridlm.export.remote.source import External, Library, Source, Target

RESOLVE = Target("hybridlm.ops.backend", "resolve")
REFERENCE = "reference"
BACKEND = "backend"


class Cut(NamedTuple):
    """The text from start to end goes; `by`, if there is one, comes instead, as it is rendered."""

    start: int
    end: int
    by: ast.AST | None = None


def cuts(library: Library, source: Source, statement: ast.stmt) -> list[Cut]:
    """All cuts in one top-level statement. Those inside others do not matter."""
    found = []
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef):
            found += _dispatch(library, source, node)
            found += _initial_values(source, node)
            found += _backend_parameter(source, node)
        elif isinstance(node, ast.Call):
            found += _backend_argument(source, node)
            found += _resolved_config(source, node)
        elif isinstance(node, ast.Subscript) and _is_shape(library, source, node):
            found.append(Cut(*source.span(node), by=node.slice.elts[0]))
    return found


def _is_shape(library: Library, source: Source, node: ast.Subscript) -> bool:
    """Float[Tensor, "b t d"], which becomes Tensor."""
    if not isinstance(node.value, ast.Name) or not isinstance(node.slice, ast.Tuple):
        return False
    meaning = library.meaning(source.module, node.value.id)
    return isinstance(meaning, External) and meaning.module == "jaxtyping"


# ------------------------------------------------------------------------------------------------------ the backend
def _dispatch(library: Library, source: Source, function: ast.FunctionDef) -> Iterator[Cut]:
    """`resolve(op, backend, offers)` becomes what is offered as the reference; what only the others needed, goes."""
    for call in ast.walk(function):
        named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if named and library.meaning(source.module, call.func.id) == RESOLVE:
            reference = _offered(library, source, function, call.args[2])
            yield Cut(*source.span(call), by=reference)
            yield from _needless(source, function, call, reference)


def _offered(library: Library, source: Source, function: ast.FunctionDef, offers: ast.expr) -> ast.expr:
    """What stands under "reference" in the offers."""
    if isinstance(offers, ast.Dict):
        return next(v for k, v in zip(offers.keys, offers.values, strict=True) if k.value == REFERENCE)
    if isinstance(offers, ast.Call):  # a function with a parameter of that name
        target = library.meaning(source.module, offers.func.id)
        names = [arg.arg for arg in arguments(library.definition(target).statements[0])]
        return offers.args[names.index(REFERENCE)]
    for statement in ast.walk(function):
        if isinstance(statement, ast.Assign):
            (target,), value = statement.targets, statement.value
            if _names(target) == [offers.id] and isinstance(value, ast.Dict) and _offers_reference(value):
                return _offered(library, source, function, value)
            if isinstance(target, ast.Subscript) and _names(target) == [offers.id]:
                return value
    raise AssertionError(f"{source.module}.{function.name}: no reference among its offers")


def _offers_reference(offers: ast.Dict) -> bool:
    return any(key.value == REFERENCE for key in offers.keys)


def _needless(source: Source, function: ast.FunctionDef, call: ast.Call, reference: ast.expr) -> Iterator[Cut]:
    """Statements that give a value to names which nothing reads any more."""
    gone: list[ast.stmt] = []

    def read_beside(*others: ast.stmt) -> Counter[str]:
        return _read(function.body, [*gone, call, *others]) + _read([reference], [])

    while True:  # a statement that reads a name to change it needs it for nothing else
        more = [s for s in function.body if s not in gone and _stores_only(s, read_beside(s))]
        if not more:
            break
        gone += more
    read = read_beside()
    for statement in gone:
        yield _line(source, statement)
    for statement in function.body:
        if statement not in gone and isinstance(statement, ast.Assign):
            yield from _fewer(source, statement, read)


def _read(nodes: list, without: list[ast.AST]) -> Counter[str]:
    """How often names are read under these nodes."""
    left_out = {id(part) for node in without for part in ast.walk(node)}
    parts = (part for node in nodes for part in ast.walk(node) if id(part) not in left_out)
    stored = {id(target.value) for target in _subscripts(nodes)}
    return Counter(
        p.id for p in parts if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Load) and id(p) not in stored
    )


def _subscripts(nodes: list) -> Iterator[ast.Subscript]:
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store):
                yield part


def _stores_only(statement: ast.stmt, read: Counter[str]) -> bool:
    """Whether all that a statement does is to give values to names that are not read; computing them has no effect."""
    if isinstance(statement, ast.Assign):
        names = [_names(target) for target in statement.targets]
        return all(names) and not any(read[name] for group in names for name in group)
    if isinstance(statement, ast.If):
        return all(_stores_only(inner, read) for inner in [*statement.body, *statement.orelse])
    return False


def _names(target: ast.expr) -> list[str]:
    """The names that are assigned to: a, (a, b), a[...]; none for anything else."""
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Subscript):
        return _names(target.value)
    return [name for part in target.elts for name in _names(part)] if isinstance(target, ast.Tuple) else []


def _fewer(source: Source, statement: ast.Assign, read: Counter[str]) -> Iterator[Cut]:
    """`a, b = f(), g()` where nobody reads b: `a = f()`."""
    (target,), value = statement.targets, statement.value
    if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)):
        return
    live = [i for i, part in enumerate(target.elts) if not (isinstance(part, ast.Name) and not read[part.id])]
    if len(live) == 1 < len(target.elts):
        yield Cut(*source.span(target), by=target.elts[live[0]])
        yield Cut(*source.span(value), by=value.elts[live[0]])


def _line(source: Source, statement: ast.stmt) -> Cut:
    """The lines of a statement, from the end of the one before on."""
    start, end = source.span(statement)
    return Cut(source.line_start(start) - 1, source.line_end(end) - 1)


def _backend_parameter(source: Source, function: ast.FunctionDef) -> Iterator[Cut]:
    """`backend: str = "auto"`, with the comma before it, and with a `*` that would stand alone."""
    a = function.args
    for group, defaults in ((a.args, a.defaults), (a.kwonlyargs, a.kw_defaults)):
        for arg, default in zip(group[len(group) - len(defaults) :], defaults, strict=True):
            if arg.arg == BACKEND:
                start, end = _with_comma(source, source.span(arg)[0]), source.span(default)[1]
                if group == [arg] and group is a.kwonlyargs:
                    start = _with_comma(source, source.text.rindex(b"*", 0, start))
                yield Cut(start, end)


def _backend_argument(source: Source, call: ast.Call) -> Iterator[Cut]:
    """`backend=backend`, and `partial(f, backend=backend)`, which is f."""
    for keyword in call.keywords:
        if keyword.arg == BACKEND:
            if isinstance(call.func, ast.Name) and call.func.id == "partial" and len(call.args + call.keywords) == 2:
                yield Cut(*source.span(call), by=call.args[0])
            else:
                start, end = source.span(keyword)
                yield Cut(_with_comma(source, start), end)


def _with_comma(source: Source, start: int) -> int:
    return source.text.rindex(b",", 0, start)


# ------------------------------------------------------------------------------------------- initial values, configs
def _initial_values(source: Source, function: ast.FunctionDef) -> Iterator[Cut]:
    """`self.reset_parameters()` in a constructor: weights come from a file."""
    for statement in function.body if function.name == "__init__" else ():
        if isinstance(statement, ast.Expr) and ast.unparse(statement) == "self.reset_parameters()":
            yield _line(source, statement)


def _resolved_config(source: Source, call: ast.Call) -> Iterator[Cut]:
    """`config.resolve(d_model)`: it is resolved, as a saved spec is."""
    if isinstance(call.func, ast.Attribute) and ast.unparse(call) == "config.resolve(d_model)":
        yield Cut(*source.span(call), by=call.func.value)
