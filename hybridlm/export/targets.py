"""The targets of `hybridlm export`: families that others serve, and forms of our own. Each proves what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hybridlm.compose.plan import Stack
from hybridlm.errors import ExportError
from hybridlm.export.choice import choose, fits, unsayable
from hybridlm.export.family import FAMILIES, family, instead
from hybridlm.export.lower import Beside, Lowered, lower
from hybridlm.export.original import Original

REMOTE = "remote-code"


@dataclass(frozen=True)
class Order:
    """What is to be written, and where.

    max_length: tokens that readers may be asked to read. max_shard_bytes: of tensors in one file. replaces: names of
    files in `out` that go in the same step.
    """

    original: Original
    out: Path
    max_length: int
    max_shard_bytes: int
    replaces: Iterable[str]
    beside: Beside


@dataclass(frozen=True)
class Target:
    """One of the words that --to takes.

    what: in a few words. served_by: what runs it. write: writes and proves it, or raises ExportError and leaves no
    trace. misfits: why a model cannot be said in it. text: whether tokenizer and card are written beside it. code:
    whether it brings code of its own, which transformers runs if told to trust it. shards: whether its weights are
    files of tensors, which can be cut.
    """

    name: str
    what: str
    served_by: tuple[str, ...]
    write: Callable[[Order], Lowered]
    misfits: Callable[[Stack], list[str]]
    text: bool = True
    code: bool = False
    shards: bool = True


def target(name: str) -> Target:
    """The target of that name. ExportError: there is none."""
    known = targets()
    if name not in known:
        words = ["auto", *known]
        raise ExportError(f"--to: {name!r}; it must be one of {', '.join(words)}.{instead(name, words)}")
    return known[name]


def targets() -> dict[str, Target]:
    """All of them by name, families by how widely they are served."""
    return {name: _of_family(name) for name in FAMILIES} | {form.name: form for form in FORMS}


def chosen(original: Original, to: str) -> Target:
    """The target that `to` names, served by what runs this model; for auto the first family that fits, or remote code.

    ExportError: the model cannot be said in it, with every reason.
    """
    stack, text = original.stack, original.text
    if to == "auto":
        to = next(iter(fits(stack)), REMOTE)
    if to in FAMILIES:
        servers = choose(stack, to).servers(stack, merges=text is not None and text.path is not None)
        return replace(target(to), served_by=servers)
    if said := target(to).misfits(stack):
        others = [form.name for form in FORMS if not form.misfits(stack)]
        raise unsayable(to, said, f"\nIt fits: {', '.join(others)}.")
    return target(to)


def _of_family(name: str) -> Target:
    one = family(name)

    def write(order: Order) -> Lowered:
        return lower(
            order.original.model,
            order.out,
            name,
            max_length=order.max_length,
            max_shard_bytes=order.max_shard_bytes,
            replaces=order.replaces,
            beside=order.beside,
        )

    return Target(name, f"a {one.architecture} checkpoint", one.served_by, write, one.misfits)


# ------------------------------------------------------------------------------------------------- forms of our own
def _write_own(order: Order) -> Lowered:
    from hybridlm.export.own import write_own

    lowered = Lowered("safetensors", None)
    original = order.original
    write_own(
        original.folder if original.dtype is None else original.model,
        order.out,
        max_shard_bytes=order.max_shard_bytes,
        tokenizer=None if original.text is None else original.text.path or "bytes",
        replaces=order.replaces,
        beside=lambda staged: order.beside(staged, lowered),
    )
    return lowered


def _write_remote(order: Order) -> Lowered:
    from hybridlm.export.remote.write import lower_remote

    return lower_remote(
        order.original.model,
        order.out,
        max_shard_bytes=order.max_shard_bytes,
        replaces=order.replaces,
        beside=order.beside,
    )


def _remote_misfits(stack: Stack) -> list[str]:
    from hybridlm.export.remote.write import misfits

    return misfits(stack)


def _write_programs(order: Order) -> Lowered:
    from hybridlm.export.program import write_torch_export

    return write_torch_export(order.original.model, order.out, replaces=order.replaces, beside=order.beside)


def _write_onnx(order: Order) -> Lowered:
    from hybridlm.export.program import write_onnx

    return write_onnx(order.original.model, order.out, replaces=order.replaces, beside=order.beside)


def _program_misfits(stack: Stack) -> list[str]:
    from hybridlm.export.program.describe import misfits

    return misfits(stack.spec)


FORMS = (
    Target(
        REMOTE,
        "our own layers in one Python file, for transformers",
        ("transformers",),
        _write_remote,
        _remote_misfits,
        code=True,
    ),
    Target("safetensors", "our own form, as for the Hub", ("hybridlm",), _write_own, lambda stack: [], text=False),
    Target("torch-export", "two programs for PyTorch", ("torch",), _write_programs, _program_misfits, shards=False),
    Target("onnx", "two programs in ONNX", ("onnxruntime",), _write_onnx, _program_misfits, shards=False),
)
