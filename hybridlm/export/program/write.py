"""The folder of two programs, in either form: traced, written, read back and compared, described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from hybridlm.compose.model import HybridLM
from hybridlm.export.lower import Beside, Lowered, put_in_place
from hybridlm.export.program.agreement import Run, compare
from hybridlm.export.program.describe import ready, write_description
from hybridlm.export.program.interface import Interface, Port, interface_of
from hybridlm.export.proof import Proof


@dataclass(frozen=True)
class Form:
    """What programs are as files.

    target:  what --to calls it, and the name of the .json beside them. suffix: of their files.
    reader:  what runs them. read: a file as it runs there.
    trace:   (model, interface, piece) -> {"prefill": its graph, "step": its graph}.
    write:   writes a graph, whose inputs and outputs these are, into a file.
    """

    target: str
    suffix: str
    reader: str
    trace: Callable[[HybridLM, Interface, int], dict[str, ExportedProgram]]
    write: Callable[[ExportedProgram, Path, Sequence[Port], Sequence[Port]], None]
    read: Callable[[Path], Run]


def write_programs(
    model: HybridLM, out: str | Path, form: Form, *, piece: int, replaces: Iterable[str], beside: Beside | None
) -> Lowered:
    """Write both programs and what describes them into the folder `out`. See `write_torch_export`."""
    ours = ready(model, piece)
    interface = interface_of(ours)

    def write(staged: Path) -> Proof:
        read = {}
        for name, program in form.trace(ours, interface, piece).items():
            file = staged / f"{name}{form.suffix}"
            form.write(program, file, interface.inputs(name), interface.outputs(name))
            read[name] = form.read(file)
        proof = compare(ours, interface, read)
        write_description(staged / f"{form.target}.json", ours, interface, form.suffix, proof)
        return proof

    return put_in_place(out, form.target, write, replaces=replaces, beside=beside, reader=form.reader)
