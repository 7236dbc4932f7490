"""Which code runs an op. The only place that knows of hardware and of optional packages.

An op makes an `Offer` for each backend: a function, and why it cannot take the call at hand. `auto` takes the first
that can, a named backend is taken or raises, and `use` sets what `auto` means for everything below it.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hybridlm.errors import SpecError, UnsupportedError, did_you_mean

BACKENDS = ("auto", "reference", "triton", "vendor")
WITHOUT = "HYBRIDLM_WITHOUT"  # an environment variable: packages, commas between, that are as if they were not there
BACKWARD = "derivatives are taken forward here, and kernels take them backward"
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run in Python, on a CPU: slow, but exact

_preferred: str = "auto"
_seen: list[Seen] | None = None


class Offer(NamedTuple):
    """One backend's offer to run a call.

    run:   the function.
    lacks: why it cannot take this call; None: it can. A function that says so is asked only when its turn comes, so
           that no package is imported for a call that a better backend takes.
    asked: why `auto` passes over it although it can, so that it has to be asked for; None: it does not.
    """

    run: Callable | None
    lacks: str | Callable[[], str | None] | None = None
    asked: str | None = None


class Seen(NamedTuple):
    """What was chosen for one call. passed: {backend: why not} of those that were offered before it."""

    op: str
    backend: str
    passed: tuple[tuple[str, str], ...] = ()


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Within the block `auto` means this backend, and the reference for calls that it does not take."""
    global _preferred  # a context variable would be cleaner, but torch.compile cannot trace one
    before, _preferred = _preferred, known(backend)
    try:
        yield
    finally:
        _preferred = before


def preferred() -> str:
    """What `auto` means here: a backend, or "auto" for the best of each op."""
    return _preferred


@contextmanager
def trace() -> Iterator[list[Seen]]:
    """Within the block, the list that is given fills with what was chosen for every op that runs."""
    global _seen
    before, _seen = _seen, []
    try:
        yield _seen
    finally:
        _seen = before


def resolve(op: str, backend: str, offers: Mapping[str, Callable | Offer]) -> Callable:
    """The function that runs `op`. offers: best first; a bare function takes every call, as the reference must.

    SpecError: no such backend. UnsupportedError: the backend does not offer this op, or cannot take this call.
    """
    offers = {name: offer if isinstance(offer, Offer) else Offer(offer) for name, offer in offers.items()}
    if forward_mode():  # what comes with a tensor would be lost in a kernel without a word
        offers |= {name: offer._replace(lacks=BACKWARD) for name, offer in offers.items() if name != "reference"}
    wanted = known(backend)
    if wanted == "auto":
        wanted = _preferred if _preferred != "auto" else _first(offers)
        if wanted not in offers or _lacks(offers[wanted]) is not None:
            wanted = "reference"
    if wanted not in offers:
        raise UnsupportedError(f"{op}: there is no {wanted!r} backend for it; it has: {', '.join(offers)}")
    if (why := _lacks(offers[wanted])) is not None:
        raise UnsupportedError(f"{op}: backend {wanted!r} cannot take this call: {why}")
    if _seen is not None:
        _seen.append(Seen(op, wanted, _passed(offers, wanted)))
    return offers[wanted].run


def _lacks(offer: Offer) -> str | None:
    return offer.lacks() if callable(offer.lacks) else offer.lacks


def _first(offers: Mapping[str, Offer]) -> str:
    return next(name for name, offer in offers.items() if offer.asked is None and _lacks(offer) is None)


def _passed(offers: Mapping[str, Offer], chosen: str) -> tuple[tuple[str, str], ...]:
    """The backends that were passed over, and why."""
    before = list(offers)[: list(offers).index(chosen)]
    reasons = {name: _lacks(offers[name]) or offers[name].asked for name in before}
    return tuple((name, why) for name, why in reasons.items() if why is not None)


def forward_mode() -> bool:
    """Whether derivatives are taken forward, by torch.autograd.forward_ad or torch.func.jvp."""
    return forward_ad._current_level >= 0


def exporting() -> bool:
    """Whether torch.export traces a program, which is to run where our ops are not."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()  # PyTorch 2.11 says it of both


def known(backend: str) -> str:
    """The name of a backend. SpecError: there is none such."""
    if backend not in BACKENDS:
        raise SpecError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}.{did_you_mean(backend, BACKENDS)}")
    return backend


# ------------------------------------------------------------------------------------------------------------- hardware
def _constant(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result, which would import the compiler at once: what is found does not change."""
    function._dynamo_marked_constant = True
    return function


def devices() -> list[tuple[str, str]]:
    """Name and description of what torch can compute on, the CPU first."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return [("cpu", f"{threads} thread{'s' * (threads > 1)}")] + [
        (f"cuda:{i}", f"{gpu.name}, {gpu.total_memory >> 30} GiB, compute capability {gpu.major}.{gpu.minor}")
        for i, gpu in enumerate(gpus)
    ]


def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None: torch sees none."""
    return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None


@_constant
def from_hopper() -> bool:
    """Whether the first GPU is a Hopper or a later one. A plain bool: torch 2.11 cannot trace a constant tuple."""
    return (capability() or (0, 0)) >= (9, 0)


def unseen_gpu() -> bool:
    """Whether this machine has an NVIDIA driver of which this torch makes no use."""
    return os.path.exists("/proc/driver/nvidia/version") and not torch.cuda.is_available()


def memory(device: torch.device | str) -> int | None:
    """Bytes of memory that the device has in all; None where that is not known."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


# ------------------------------------------------------------------------------------------------------------- packages
def hidden() -> list[str]:
    """Packages that are to be as if they were not there, as the environment says."""
    return [name.strip().replace("-", "_") for name in os.environ.get(WITHOUT, "").split(",") if name.strip()]


@cache
def _probe(module: str, attribute: str) -> tuple[Any, str | None]:
    """The attribute, or why there is none. A package may be installed and yet broken, or built without a part."""
    package = module.partition(".")[0]
    if package in hidden():
        return None, f"{package} is hidden by {WITHOUT}"
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        return None, f"{package} is not " + ("installed" if missing == package else f"whole: it needs {error.name}")
    except Exception as error:  # built for another torch, say; what is raised is not ours to foresee
        return None, f"{package} is broken here: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return found, None if found is not None else f"{package} was built without {attribute}"


def found(module: str, attribute: str) -> Any:
    """A function of an optional package. UnsupportedError: it is not there, and why."""
    value, why = _probe(module, attribute)
    if why is not None:
        raise UnsupportedError(why)
    return value


@_constant
def missing(module: str, attribute: str) -> str | None:
    """Why `found(module, attribute)` would raise; None if it would not. Imports the package when first asked."""
    return _probe(module, attribute)[1]


def kernels(module: str) -> ModuleType | None:
    """A module of our Triton kernels; None where Triton cannot run (no GPU build of torch, or Triton is not there), and
    while a program is exported."""
    return None if exporting() or not _load(module) else _loaded[module]


_loaded: dict[str, ModuleType] = {}  # torch.compile can look into it, but neither import a module nor be handed one


@_constant
def _load(module: str) -> bool:
    """Whether the module can be had; then it is in `_loaded`, into which all of them go at once.

    One by one they would come too late for torch.compile, which looks at a dictionary when it first meets it.
    """
    if triton_missing() is None and not _loaded:
        _loaded.update({name: importlib.import_module(name) for name in _kernel_modules()})
        importlib.import_module("hybridlm.ops.flops").tell()
    return module in _loaded


def _kernel_modules() -> Iterator[str]:
    """hybridlm.ops.OP.triton, and what begins so, of every op."""
    ops = importlib.import_module("hybridlm.ops")
    for op in pkgutil.iter_modules(ops.__path__, "hybridlm.ops."):
        if op.ispkg:
            inside = importlib.import_module(op.name)
            yield from (m.name for m in pkgutil.iter_modules(inside.__path__, f"{op.name}.") if ".triton" in m.name)


@_constant
def triton_missing() -> str | None:
    """Why no Triton kernel can run here; None if one can."""
    if torch.version.cuda is None and not INTERPRETING:
        return "Triton needs a torch built for CUDA"
    return _probe("triton.language", "dot")[1]


def triton_lacks(x: Tensor) -> str | None:
    """Why no Triton kernel can run on this tensor; None if one can."""
    if exporting():
        return "a program that is exported runs where our kernels are not"
    return triton_missing() if INTERPRETING or x.is_cuda else "Triton needs a GPU"


def triton_asked(x: Tensor) -> str | None:
    """Why `auto` takes no Triton kernel for this tensor though one could run."""
    return "on a CPU Triton's kernels run in its interpreter" if not x.is_cuda else None
