"""`hybridlm doctor`: what this machine has, what each layer runs on and why, what would be faster, what is right."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Literal

from hybridlm.cli.known_bad import Machine, known_bad
from hybridlm.cli.self_test import self_test
from hybridlm.cli.what_runs import faster, layers, ops_of
from hybridlm.errors import SpecError

if TYPE_CHECKING:
    from hybridlm.ops.packages import Package

CORE = ("torch", "lightning", "tokenizers", "safetensors", "numpy")
NOTHING_TO_GAIN = "nothing to gain: its kernels need a CUDA GPU"


def doctor(
    model: str | None = None,
    /,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    skip_self_test: bool = False,
    json: bool = False,
) -> int:
    """Versions, devices, optional packages and known trouble; with a model, what runs each of its layers, why, and what
    would be faster; then every op (of the model) on this device against its float64 reference.

    Nothing is needed beyond the core: what is missing makes some layers slower, never wrong. Exit code 1: an op failed.

    Args:
        model: a YAML file, the name of a shipped one such as tiny, a run folder, or a pattern such as "(M3A)2".
        device: such as cpu or cuda:1; the last of the devices listed if not given.
        dtype: of the compute; bfloat16 on a GPU and float32 on a CPU if not given.
        skip_self_test: only look, run no op; the self-test takes up to a second an op.
        json: print JSON: {python, platform, hybridlm, packages, optional, devices, known_bad, layers, faster,
            self_test}.
    """
    from hybridlm.compose.memory import require_device

    about = examine()
    device = str(require_device(device or about["devices"][-1]["name"], SpecError))
    if device == "meta":
        raise SpecError("device: meta holds no numbers that could be tested; use cpu or a GPU")
    if not (skip_self_test or _has_float64(device)):
        raise SpecError(f"device: {device} has no float64, against which ops are tested; use cpu, or --skip-self-test")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    found = layers(model, device, dtype) if model else None
    about |= {"layers": found, "faster": faster(found) if found else None}
    about["self_test"] = None if skip_self_test else self_test(device, dtype, ops_of(found) if found else None)
    if json:
        import json as writer

        print(writer.dumps(about, indent=2, ensure_ascii=False))
    else:
        from hybridlm.cli.doctor_page import show

        show(about, device, dtype)
    return int(any(not row["passed"] for row in about["self_test"] or ()))


def _has_float64(device: str) -> bool:
    """Whether the device computes in float64: an Apple GPU does not."""
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def examine() -> dict[str, Any]:
    """What is installed, what torch can compute on, and what is known to go wrong with that."""
    from hybridlm import __version__
    from hybridlm.ops.backend import capability, devices
    from hybridlm.ops.packages import PACKAGES, found_version

    optional = [_package(package, capability() is not None) for package in PACKAGES]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hybridlm": __version__,
        "packages": {name: found_version(name) for name in CORE},
        "optional": optional,
        "devices": [{"name": name, "about": about} for name, about in devices()],
        "known_bad": known_bad(_machine({row["package"]: row["trouble"] for row in optional})),
    }


def _package(package: Package, gpu: bool) -> dict[str, Any]:
    """trouble: why one that is installed cannot be called. install: the command; None: it would change nothing."""
    from hybridlm.ops.packages import install

    found = package.version
    trouble = package.trouble if found is not None and gpu else None
    needed = gpu and (found is None or (trouble is not None and not package.hidden))
    return {
        "package": package.name,
        "version": found,
        "gives": package.gives,
        "trouble": trouble,
        "install": install([package]) if needed else None,
        "note": "" if gpu else NOTHING_TO_GAIN,
    }


def _machine(troubles: dict[str, str | None]) -> Machine:
    import torch

    from hybridlm.ops.backend import capability, unseen_gpu
    from hybridlm.ops.packages import found_version

    names = (*CORE, "pytorch-lightning", *troubles)
    return Machine(
        versions={name: found_version(name) for name in names},
        capability=capability(),
        cudnn=torch.backends.cudnn.version(),
        troubles=troubles,
        unseen_gpu=unseen_gpu(),
    )
