"""The contenders of a command: ours on one or several of its paths, then each peer that is asked for."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from benchmarks.contest import Contender, Entry
from benchmarks.peers import FULL, KNOWN, Peer, peer

OURS = "hybridlm"
PATHS = ("eager", "compile", "graph")


def add_options(parser: ArgumentParser, best: str = "graph") -> None:
    """--peer, --ours and the two switches. best: of our paths on a GPU, which stand by default."""
    parser.add_argument("--peer", default="", help=f"other packages, commas between: {','.join(KNOWN)}; default none")
    parser.add_argument(
        "--ours",
        default="",
        help="hybridlm's paths, commas between: eager; compile: blocks compiled (in inference also in a CUDA graph); "
        f"graph: in a CUDA graph (in training also compiled); default: {best} on a GPU, eager on a CPU",
    )
    parser.set_defaults(best=best)
    parser.add_argument("--compile", action="store_true", help="the same as --ours compile")
    parser.add_argument("--graph", action="store_true", help="the same as --ours graph")


def listed(text: str, known: tuple[str, ...], option: str) -> list[str]:
    """The names between commas. ValueError: one that is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers between commas. ValueError: something else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) == 0]:
        raise ValueError(f"{option}: {', '.join(wrong)}; it takes whole numbers with commas between")
    return [int(part) for part in parts]


def check(args: Namespace) -> None:
    """ValueError, before anything is built: a contender that there is not."""
    paths(args)
    listed(args.peer, KNOWN, "--peer")


def paths(args: Namespace) -> list[str]:
    """Ours, as the options say: by default the best on a GPU, and plain calls on a CPU."""
    asked = listed(args.ours, PATHS, "--ours")
    asked += [name for name in ("compile", "graph") if getattr(args, name) and name not in asked]
    return asked or (args.best.split(",") if args.device.startswith("cuda") else ["eager"])


def line_up(
    args: Namespace,
    order: tuple[str, ...],
    ours: Callable[[str], Entry],
    theirs: Callable[[Callable[[], Peer], str], Entry],
    build: Callable,
    alone: bool = False,
) -> list[Contender]:
    """Ours first. order: our paths from the plainest on, as they fall back. ours: path -> entry.

    theirs: (builder of a peer, its name) -> entry. build: peer module -> Peer. alone: those that fill a memory have it.
    """
    asked = paths(args)
    first = [
        Contender(
            OURS if len(asked) == 1 else f"{OURS} {path}", lambda path=path: falling_back(ours, path, order), ours=True
        )
        for path in asked
    ]
    others = listed(args.peer, KNOWN, "--peer")
    return first + [
        Contender(name, lambda name=name: _peer_entry(name, theirs, build), alone=alone and name in FULL)
        for name in others
    ]


def _peer_entry(name: str, theirs: Callable, build: Callable) -> Entry:
    module = peer(name)
    if (why := module.missing()) is not None:
        raise NotImplementedError(why)
    return theirs(lambda: build(module), name)


def falling_back(ours: Callable[[str], Entry], path: str, order: tuple[str, ...] = PATHS) -> Entry:
    """The entry of a path, or of the next simpler one with the reason among its notes."""
    notes: list[str] = []
    for name in reversed(order[: order.index(path) + 1]):
        try:
            entry = ours(name)
        except Exception as error:
            if name == "eager" or type(error).__name__ == "OutOfMemoryError":
                raise
            notes.append(f"not {name}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}")
            continue
        entry.notes = [*notes, *entry.notes]
        return entry
    raise AssertionError(path)
