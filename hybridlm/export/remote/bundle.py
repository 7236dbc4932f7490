"""One Python file out of many: definitions in the order of their needs, each under a name of its own."""

from __future__ import annotations

import ast
import builtins
import keyword
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from hybridlm.errors import SpecError
from hybridlm.export.remote.reach import Reach, stretches
from hybridlm.export.remote.source import Definition, External, Library, Source, Target

ROOMS = ("ops", "layers", "compose", "reference", "export", "remote")  # folders that say nothing of what is in them
ALLOWED = {*sys.stdlib_module_names, "torch", "transformers", ""}
TAKEN = {*dir(builtins), *keyword.kwlist}
WIDTH = 120


def bundle(library: Library, roots: Sequence[Target]) -> str:
    """The text of a module that defines the roots, under their own names, and all that they need.

    SpecError: something of it needs a package other than torch and transformers.
    """
    reach = Reach.of(library, roots)
    externals = sorted({r.meaning for r in _references(reach) if isinstance(r.meaning, External)}, key=str)
    _check_packages(reach, externals)
    order = _in_order(reach)
    names = _names(reach, order, roots, externals)
    sections = [_section(reach, module, names) for module in order]
    return "\n".join([*_imports(externals), "", "", "\n\n\n".join(sections), ""])


def _references(reach: Reach) -> Iterator:
    for found in reach.references.values():
        yield from found.values()


def _check_packages(reach: Reach, externals: Sequence[External]) -> None:
    for external in externals:
        if external.module.partition(".")[0] not in ALLOWED:
            users = [m for m, found in reach.references.items() for r in found.values() if r.meaning == external]
            raise SpecError(
                f"{users[0]} imports {external.module}, and a remote-code export needs nothing but torch and "
                "transformers; write that part in plain PyTorch"
            )


def _in_order(reach: Reach) -> list[str]:
    """Modules, each after those that it needs."""
    needs: dict[str, set[str]] = defaultdict(set)
    for module, found in reach.references.items():
        needs[module] |= {r.meaning.module for r in found.values() if isinstance(r.meaning, Target)} - {module}
    order: list[str] = []

    def visit(module: str, above: tuple[str, ...]) -> None:
        for other in sorted(needs[module]):
            if other not in above and other not in order:
                visit(other, (*above, module))
        if module not in order:
            order.append(module)

    for module in sorted({target.module for target in reach.definitions}):
        visit(module, ())
    return order


# ------------------------------------------------------------------------------------------------------------- names
def _names(
    reach: Reach, order: Sequence[str], roots: Sequence[Target], externals: Sequence[External]
) -> dict[Target, str]:
    """A name for every definition: its own, or where two modules have the same, one that says of which it is."""
    hidden: dict[Target, set[str]] = defaultdict(set)  # names that mean something else where a definition is used
    for reference in _references(reach):
        hidden[reference.meaning] |= reference.locals
    names = {root: root.name for root in roots}
    taken = TAKEN | {external.local for external in externals} | set(names.values())
    found = [t for d in reach.definitions.values() for t in (Target(d.module, name) for name in d.names)]
    for target in sorted(found, key=lambda t: (t.module.count("."), order.index(t.module), t.name)):
        if target not in names:
            free = (n for n in _candidates(target) if n not in taken and n not in hidden[target])
            names[target] = next(free)
            taken.add(names[target])
    return names


def _candidates(target: Target) -> Iterator[str]:
    """ssd, ssd_reference, ...; of private ones _blocks, _selective_scan_blocks, ..."""
    private, name = "_" * target.name.startswith("_"), target.name.lstrip("_")
    parts = target.module.split(".")[1:]
    told = "_".join(part for part in parts if part not in ROOMS)
    yield target.name
    if not private:
        yield f"{name}_{parts[-1]}"
    yield f"{private}{told}_{name}"
    yield f"{private}{'_'.join(parts)}_{name}"
    yield from (f"{private}{name}_{i}" for i in range(2, 1000))


# ----------------------------------------------------------------------------------------------------------- writing
def _imports(externals: Sequence[External]) -> list[str]:
    """Import statements: the standard library's, others, and neighbours in the folder."""
    whole = [e for e in externals if e.name is None]
    some = [e for e in externals if e.name is not None]
    lines = {e.module: [_import_line(e)] for e in whole}
    for module, group in groupby(sorted(some), key=lambda e: e.module):
        lines.setdefault(module, []).append(_from_line(module, list(group)))
    kinds = [[line for m in sorted(lines) if _kind(m) == kind for line in lines[m]] for kind in range(3)]
    future = ["from __future__ import annotations"]
    return [line for block in [future, *kinds] if block for line in [*block, ""]][:-1]


def _kind(module: str) -> int:
    return 2 if module.startswith(".") else 0 if module.partition(".")[0] in sys.stdlib_module_names else 1


def _import_line(e: External) -> str:
    return f"import {e.module}" if e.local == e.module else f"import {e.module} as {e.local}"


def _from_line(module: str, group: list[External]) -> str:
    names = [e.name if e.name == e.local else f"{e.name} as {e.local}" for e in group]
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= WIDTH else f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def _section(reach: Reach, module: str, names: dict[Target, str]) -> str:
    """What is needed of a module, in its order, under a heading with what the module says of itself."""
    source = reach.library.source(module)
    all_of_them = {definition.key: definition for definition in source.definitions.values()}
    parts = [definition for key, definition in all_of_them.items() if key in reach.definitions]
    text = _heading(source)
    for before, part in zip([None, *parts], parts, strict=False):
        gap = "\n" if before is not None and _constant(before) and _constant(part) else "\n\n\n"
        text += ("\n" if before is None else gap) + _definition(reach, source, part, names)
    return text


def _constant(definition: Definition) -> bool:
    return not isinstance(definition.statements[0], ast.FunctionDef | ast.ClassDef)


def _heading(source: Source) -> str:
    doc = ast.get_docstring(source.tree) or ""
    rule = f"# {'-' * (WIDTH - 3 - len(source.module))} {source.module}"
    return "\n".join([rule, *(f"# {line}".rstrip() for line in doc.splitlines())])


def _definition(reach: Reach, source: Source, definition: Definition, names: dict[Target, str]) -> str:
    return "\n".join(_statement(reach, source, statement, names) for statement in definition.statements)


def _statement(reach: Reach, source: Source, statement: ast.stmt, names: dict[Target, str]) -> str:
    start, end = source.span(statement)
    last = source.line_end(end) if b"#" in source.text[end : source.line_end(end)] else end
    pieces = stretches(source, _with_comments(source, start), last, reach.cuts[id(statement)])
    text = "".join(_renamed(reach, source, *piece, names) for piece in pieces).rstrip()
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        text = _defined_as(text, statement, names[Target(source.module, statement.name)])
    return text


def _with_comments(source: Source, start: int) -> int:
    """From the first comment right above it on; a rule across the page is none."""
    while start > 0:
        above = source.line_start(start - 1)
        line = source.text[above:start]
        if not line.startswith(b"#") or line.startswith(b"# ---"):
            break
        start = above
    return start


def _defined_as(text: str, statement: ast.stmt, name: str) -> str:
    word = "class" if isinstance(statement, ast.ClassDef) else "def"
    old, new = f"{word} {statement.name}", f"{word} {name}"
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(old))
    lines[at] = new + lines[at].removeprefix(old)
    return "\n".join(lines)


def _renamed(reach: Reach, source: Source, start: int, end: int, names: dict[Target, str]) -> str:
    """A piece of a module's text, with what it refers to under the names that it has here."""
    text, at = b"", start
    for place in sorted(p for p in reach.references[source.module] if start <= p < end):
        reference = reach.references[source.module][place]
        meaning = reference.meaning
        name = meaning.local if isinstance(meaning, External) else names[meaning]
        text += source.text[at:place] + name.encode()
        at = reference.end
    return (text + source.text[at:end]).decode()
