"""Python modules as text: what each defines, and what its names mean."""

from __future__ import annotations

import ast
import importlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from hybridlm.errors import SpecError


class Target(NamedTuple):
    """A top-level name of a module whose text is taken in."""

    module: str
    name: str


class External(NamedTuple):
    """What is imported from elsewhere: `import module as local`, or `from module import name as local`."""

    module: str
    name: str | None
    local: str


class Alias(NamedTuple):
    """A module whose text is taken in, as a name."""

    module: str


Meaning = Target | External | Alias | None  # None: a builtin


@dataclass
class Definition:
    """A function, a class or a constant: the top-level statements that bind it, and other names that they bind."""

    module: str
    names: tuple[str, ...]
    statements: list[ast.stmt] = field(default_factory=list)

    @property
    def key(self) -> Target:
        """Its first name stands for all."""
        return Target(self.module, self.names[0])


class Source:
    """One module: its text as bytes, since that is what the syntax tree counts in."""

    def __init__(self, module: str, text: str):
        self.module = module
        self.text = _unquoted(text).encode()
        self.tree = ast.parse(self.text)
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        for statement in self.tree.body:
            self._read(statement)

    @cached_property
    def _lines(self) -> list[int]:
        return [0, *accumulate(len(line) for line in self.text.splitlines(keepends=True))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where the node's text begins and ends, decorators included."""
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda part: part.lineno)
        at = first.col_offset - (first is not node)  # the @ stands before a decorator
        return self._lines[first.lineno - 1] + at, self._lines[node.end_lineno - 1] + node.end_col_offset

    def line_start(self, offset: int) -> int:
        """Where the line begins that holds this offset."""
        return self._lines[bisect_right(self._lines, offset) - 1]

    def line_end(self, offset: int) -> int:
        """Where the line ends that holds this offset, its newline included."""
        return self._lines[min(bisect_right(self._lines, offset), len(self._lines) - 1)]

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                local = alias.asname or alias.name.partition(".")[0]
                self.imports[local] = (alias.name if alias.asname else local, None)
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                self.imports[alias.asname or alias.name] = (statement.module, alias.name)
        elif names := _bound(statement):
            if (found := self.definitions.get(names[0])) is None:
                found = Definition(self.module, names)
                self.definitions.update(dict.fromkeys(names, found))
            found.statements.append(statement)
        elif _is_text(statement) and statement is not self.tree.body[0]:
            next(reversed(self.definitions.values())).statements.append(statement)  # it says what a constant is


def _bound(statement: ast.stmt) -> tuple[str, ...]:
    """The names that a top-level statement binds or changes."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return (statement.name,)
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        return (statement.target.id,) if isinstance(statement.target, ast.Name) else ()
    if isinstance(statement, ast.Assign):
        return tuple(n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name))
    return ()


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _unquoted(text: str) -> str:
    """The text with annotations that stand in quotes taken out of them: none is evaluated where it goes."""
    lines = text.encode().splitlines(keepends=True)
    quoted = [note for note in _annotations(ast.parse(text)) if isinstance(note, ast.Constant)]
    for note in sorted(quoted, key=lambda note: (note.lineno, note.col_offset), reverse=True):
        if isinstance(note.value, str):
            line = lines[note.lineno - 1]
            lines[note.lineno - 1] = line[: note.col_offset] + note.value.encode() + line[note.end_col_offset :]
    return b"".join(lines).decode()


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield from _alternatives(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield from _alternatives(node.returns)


def _alternatives(note: ast.expr) -> Iterator[ast.expr]:
    """The members of `a | b | c`."""
    if isinstance(note, ast.BinOp):
        yield from _alternatives(note.left)
        yield from _alternatives(note.right)
    else:
        yield note


class Library:
    """The modules of some packages, read when they are first asked for.

    packages: whose text is taken in; everything else stays an import. given: texts of modules that no file holds.
    instead:  {what a name means: what it shall mean}, in the form "module:name".
    """

    def __init__(self, packages: set[str], given: Mapping[str, str], instead: Mapping[str, str]):
        self.packages, self.given = packages, given
        self.instead = {_pair(old): _pair(new) for old, new in instead.items()}
        self._sources: dict[str, Source] = {}

    def source(self, module: str) -> Source:
        """A module. SpecError: its text cannot be found."""
        if module not in self._sources:
            self._sources[module] = self._load(module)
        return self._sources[module]

    def _load(self, module: str) -> Source:
        if module in self.given:
            return Source(module, self.given[module])
        return Source(module, text_of(module))

    def holds(self, module: str) -> bool:
        """Whether the module's text is taken in."""
        return module.partition(".")[0] in self.packages

    def definition(self, target: Target) -> Definition:
        """What a target names."""
        return self.source(target.module).definitions[target.name]

    def meaning(self, module: str, name: str) -> Meaning:
        """What a name means at the top level of a module."""
        source = self.source(module)
        if name in source.definitions:
            return self._other(Target(module, name))
        if name not in source.imports:
            return None
        where, what = source.imports[name]
        return self._imported(where, what, name)

    def attribute(self, alias: Alias, name: str) -> Meaning:
        """What `alias.name` means."""
        return self._imported(alias.module, name, name)

    def _imported(self, module: str, name: str | None, local: str) -> Meaning:
        if not self.holds(module):
            if (other := self.instead.get((module, name))) is not None:
                return self._named(other)
            return External(module, name, local)
        if name is None:
            return Alias(module)
        source = self.source(module)
        own_submodule = source.imports.get(name) == (module, name)  # a package that imports from itself
        if name in source.definitions or (name in source.imports and not own_submodule):
            return self.meaning(module, name)
        return Alias(f"{module}.{name}")

    def _other(self, target: Target) -> Meaning:
        return self._named(self.instead[target]) if target in self.instead else target

    def _named(self, pair: tuple[str, str]) -> Meaning:
        module, name = pair
        return self._other(Target(module, name)) if self.holds(module) else External(module, name, name)


def text_of(module: str) -> str:
    """A module's text. SpecError: it has none, being typed in, or compiled."""
    path = vars(importlib.import_module(module)).get("__file__")
    if not str(path).endswith(".py"):
        raise SpecError(f"{module}: its source is not there to be copied; put it into a file of a package")
    with open(path, encoding="utf-8") as file:
        return file.read()


def _pair(text: str) -> tuple[str, str]:
    module, _, name = text.partition(":")
    return module, name
