"""Which names in a module's text mean something of the module itself, by Python's rules of scope."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass
class Scope:
    """A function's, a class's or a comprehension's own names. Functions inside a class do not see the class's."""

    names: set[str] = field(default_factory=set)
    opens: set[str] = field(default_factory=set)
    is_class: bool = False


@dataclass(frozen=True)
class Use:
    """A place where a name of the module is used. locals: the names of the functions around it."""

    node: ast.Name
    locals: frozenset[str]


def uses(node: ast.AST) -> Iterator[Use]:
    """Every use of a module's own names (or of builtins) under a top-level statement."""
    yield from _visit(node, ())


def _visit(node: ast.AST, scopes: tuple[Scope, ...]) -> Iterator[Use]:
    if isinstance(node, ast.Name):
        if not _hidden(node.id, scopes):
            seen = frozenset(name for scope in scopes if not scope.is_class for name in scope.names)
            yield Use(node, seen)
    elif isinstance(node, Function | ast.ClassDef | Comprehension):
        outside, inside = _parts(node)
        for part in outside:
            yield from _visit(part, scopes)
        within = (*scopes, _scope(node))
        for part in inside:
            yield from _visit(part, within)
    else:
        for part in ast.iter_child_nodes(node):
            yield from _visit(part, scopes)


def _hidden(name: str, scopes: tuple[Scope, ...]) -> bool:
    for depth, scope in enumerate(reversed(scopes)):
        if name in scope.opens:
            return False
        if name in scope.names and not (scope.is_class and depth > 0):
            return True
    return False


def _parts(node: ast.AST) -> tuple[list[ast.AST], list[ast.AST]]:
    """What of a function, class or comprehension is evaluated around it, and what within."""
    if isinstance(node, Comprehension):
        first, *rest = node.generators
        values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return [first.iter], [first.target, *first.ifs, *rest, *values]
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords], node.body
    defaults = [*node.args.defaults, *(value for value in node.args.kw_defaults if value is not None)]
    if isinstance(node, ast.Lambda):
        return defaults, [node.body]
    notes = [arg.annotation for arg in arguments(node) if arg.annotation is not None]
    returns = [node.returns] if node.returns is not None else []
    return [*node.decorator_list, *defaults, *notes, *returns], node.body


def arguments(node: Function) -> list[ast.arg]:
    """All parameters of a function."""
    a = node.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *(arg for arg in (a.vararg, a.kwarg) if arg is not None)]


def _scope(node: ast.AST) -> Scope:
    """The names that a function, class or comprehension binds."""
    scope = Scope(is_class=isinstance(node, ast.ClassDef))
    if isinstance(node, Comprehension):
        for generator in node.generators:
            _bind(generator.target, scope)
        return scope
    if isinstance(node, Function):
        scope.names |= {arg.arg for arg in arguments(node)}
    for part in [node.body] if isinstance(node, ast.Lambda) else node.body:
        _bind(part, scope)
    scope.names -= scope.opens
    return scope


def _bind(node: ast.AST, scope: Scope) -> None:
    """Note what a statement binds in its own scope, inner functions, classes and comprehensions apart."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        scope.names.add(node.id)
    elif isinstance(node, ast.Global):
        scope.opens |= set(node.names)
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        scope.names.add(node.name)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        scope.names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        scope.names.add(node.name)
    if isinstance(node, Function | ast.ClassDef):
        return
    for part in ast.iter_child_nodes(node):
        if isinstance(node, Comprehension) and not isinstance(part, ast.NamedExpr):
            _bind_walrus(part, scope)
        else:
            _bind(part, scope)


def _bind_walrus(node: ast.AST, scope: Scope) -> None:
    """`:=` inside a comprehension binds around it."""
    for part in ast.walk(node):
        if isinstance(part, ast.NamedExpr):
            scope.names.add(part.target.id)
