"""What a few definitions need, and what that needs: down to single methods, so that only what runs is copied.

A method or a class constant is needed if something needed mentions its name behind a dot, whatever the object; special
methods, dataclass fields and what overrides a foreign base class are always needed.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hybridlm.errors import SpecError
from hybridlm.export.remote.scopes import Use, uses
from hybridlm.export.remote.source import Alias, Definition, External, Library, Meaning, Source, Target
from hybridlm.export.remote.trim import Cut, cuts

LOOKUPS = ("getattr", "setattr", "hasattr")


@dataclass(frozen=True)
class Reference:
    """A place in a module's text that means something of a module's top level.

    locals: names of the functions around it, which what is written there must not be.
    """

    start: int
    end: int
    meaning: Target | External
    locals: frozenset[str]


@dataclass
class Reach:
    """What is needed: its definitions, its references by module and place, and the cuts of each statement.

    gone: per class, its members that nothing needs.
    """

    library: Library
    definitions: dict[Target, Definition] = field(default_factory=dict)
    references: dict[str, dict[int, Reference]] = field(default_factory=lambda: defaultdict(dict))
    cuts: dict[int, list[Cut]] = field(default_factory=dict)
    _attributes: set[str] = field(default_factory=set)
    _waiting: dict[str, list[tuple[Source, ast.ClassDef, list[ast.stmt]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _uses: dict[int, list[Use]] = field(default_factory=dict)
    _queue: list[Definition] = field(default_factory=list)

    @classmethod
    def of(cls, library: Library, roots: Sequence[Target]) -> Reach:
        """All that the roots need."""
        reach = cls(library)
        for root in roots:
            reach._need(root)
        while reach._queue:
            reach._take(reach._queue.pop(0))
        for statement, members in reach._left():
            reach.cuts[id(statement)] += members
        return reach

    def _left(self) -> Iterator[tuple[ast.ClassDef, list[Cut]]]:
        """What still waits goes, with the comments and blank lines before it."""
        for waiting in self._waiting.values():
            for source, owner, member in waiting:
                before = owner.body[owner.body.index(member[0]) - 1]
                start, end = (source.line_end(source.span(part)[1]) - 1 for part in (before, member[-1]))
                yield owner, [Cut(start, end)]

    def _need(self, target: Target) -> None:
        definition = self.library.definition(target)
        if definition.key not in self.definitions:
            self.definitions[definition.key] = definition
            self._queue.append(definition)

    def _take(self, definition: Definition) -> None:
        source = self.library.source(definition.module)
        for statement in definition.statements:
            self.cuts[id(statement)] = cuts(self.library, source, statement)
            self._uses[id(statement)] = list(uses(statement))
            if isinstance(statement, ast.ClassDef):
                self._take_class(source, statement)
            else:
                self._read(source, statement, statement)

    def _take_class(self, source: Source, owner: ast.ClassDef) -> None:
        for part in [*owner.decorator_list, *owner.bases, *owner.keywords]:
            self._read(source, owner, part)
        inherited = _foreign(source.module, owner)
        for name, member in _members(owner).items():
            if _always(name, member[0]) or name in inherited or name in self._attributes:
                self._read_all(source, owner, member)
            else:
                self._waiting[name].append((source, owner, member))

    def _read_all(self, source: Source, owner: ast.stmt, parts: list[ast.stmt]) -> None:
        for part in parts:
            self._read(source, owner, part)

    def _read(self, source: Source, statement: ast.stmt, part: ast.AST) -> None:
        """Note what a part of a statement refers to, where no cut takes it away."""
        kept = list(stretches(source, *source.span(part), self.cuts[id(statement)]))
        parents = {id(inner): node for node in ast.walk(part) for inner in ast.iter_child_nodes(node)}
        for use in self._uses[id(statement)]:
            if _inside(source.span(use.node)[0], kept):
                self._refer(source, use, parents)
        for node in ast.walk(part):
            if (name := _looked_up(node)) and _inside(source.span(node)[1] - 1, kept):
                self._mention(name)
            if isinstance(node, ast.Global) and _inside(source.span(node)[0], kept):
                raise SpecError(
                    f"{source.module}, line {node.lineno}: global {', '.join(node.names)}; what is copied into an "
                    "export may not change its module, keep it in an object"
                )

    def _mention(self, attribute: str) -> None:
        """Members of that name are needed from now on."""
        self._attributes.add(attribute)
        for source, owner, member in self._waiting.pop(attribute, []):
            self._read_all(source, owner, member)

    def _refer(self, source: Source, use: Use, parents: Mapping[int, ast.AST]) -> None:
        node, meaning = use.node, self.library.meaning(source.module, use.node.id)
        while isinstance(meaning, Alias):
            node = parents[id(node)]
            meaning = self.library.attribute(meaning, node.attr)
        if meaning is not None:
            start, end = source.span(node)
            self.references[source.module][start] = Reference(start, end, self._settled(meaning), use.locals)

    def _settled(self, meaning: Meaning) -> Target | External:
        if isinstance(meaning, Target):
            self._need(meaning)
        return meaning


def stretches(source: Source, start: int, end: int, found: Sequence[Cut]) -> Iterator[tuple[int, int]]:
    """The pieces of text between start and end that are left, in the order in which they are written."""
    at = start
    for cut in sorted(found, key=lambda cut: (cut.start, -cut.end)):
        if at <= cut.start and cut.end <= end and (cut.start, cut.end) != (start, end):
            yield at, cut.start
            if cut.by is not None:
                yield from stretches(source, *source.span(cut.by), found)
            at = cut.end
    yield at, end


def _inside(place: int, kept: list[tuple[int, int]]) -> bool:
    return any(first <= place < last for first, last in kept)


def _looked_up(node: ast.AST) -> str | None:
    """The attribute that a node names."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKUPS:
        name = node.args[1]
        return name.value if isinstance(name, ast.Constant) else None
    return None


def _members(owner: ast.ClassDef) -> dict[str, list[ast.stmt]]:
    """Name -> the statement that defines a member, and the text that says what it is. The class's own comes first."""
    found: dict[str, list[ast.stmt]] = {}
    for statement in owner.body:
        if isinstance(statement, ast.Expr) and found:
            found[next(reversed(found))].append(statement)
        else:
            name = _name(statement)
            assert name not in found, f"{owner.name}.{name} is defined twice, and only one of them would be seen"
            found[name] = [statement]
    return found


def _name(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef):
        return statement.name
    if isinstance(statement, ast.Assign):
        return statement.targets[0].id
    return statement.target.id if isinstance(statement, ast.AnnAssign) else "__doc__"


def _always(name: str, statement: ast.stmt) -> bool:
    special = name.startswith("__") and name.endswith("__")
    return special or (isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation))


def _foreign(module: str, owner: ast.ClassDef) -> set[str]:
    """What a class has from bases of other packages, which may call it by name."""
    own = module.partition(".")[0]
    bases = getattr(importlib.import_module(module), owner.name).__mro__
    return {name for base in bases if base.__module__.partition(".")[0] not in (own, "builtins") for name in dir(base)}
