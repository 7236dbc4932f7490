"""The optional packages: what each gives, what of it is called, and how to install it on this machine."""

import shlex
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from hybridlm.ops.backend import hidden, missing


class Package(NamedTuple):
    """name, wanted: as pip knows it, and the versions. extra: the one of ours that brings it.

    gives: what gets faster. called: (module, attribute) of what is called. builds: it is compiled against the torch
    that is there, unless its authors have a wheel for this Python, torch and CUDA. setting: what its build is told.
    """

    name: str
    wanted: str
    extra: str
    gives: str
    called: tuple[tuple[str, str], ...]
    builds: bool = True
    setting: str = ""

    @property
    def version(self) -> str | None:
        """The version that is installed; None: it is not."""
        return found_version(self.name)

    @property
    def trouble(self) -> str | None:
        """Why something of it cannot be called; None: all of it can. Imports it."""
        reasons = [why for module, attribute in self.called if (why := missing(module, attribute)) is not None]
        return reasons[0] if reasons else None

    @property
    def hidden(self) -> bool:
        """Whether it is to be as if it were not there."""
        return self.called[0][0].partition(".")[0] in hidden()

    def named_in(self, reason: str) -> bool:
        """Whether a backend was passed over because this package, or a part of it, is not there."""
        module = self.called[0][0].partition(".")[0]
        return reason.startswith(tuple(f"{module} {how}" for how in ("is not", "is broken", "was built")))


PACKAGES = (
    Package(
        "triton",
        ">=3.3",
        "gpu",
        "the kernels of hybridlm itself",
        (("triton.language", "dot"),),
        builds=False,
    ),
    Package(
        "mamba-ssm",
        ">=2.2.4",
        "mamba",
        "kernels for the scans of Mamba and Mamba-2",
        (
            ("mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"),
            ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
        ),
        setting="MAMBA_KEEP_CUDA_BUILD=TRUE",  # later versions leave the scan of Mamba out if they are not told
    ),
    Package(
        "causal-conv1d",
        ">=1.5",
        "mamba",
        "a kernel for the short convolution",
        (("causal_conv1d", "causal_conv1d_fn"),),
    ),
    Package(
        "flash-attn",
        ">=2.7",
        "flash",
        "kernels for attention to windows, to documents and to a cache",
        (("flash_attn", "flash_attn_func"),),
    ),
)


def install(packages: Iterable[Package]) -> str:
    """The command that installs them here: with this Python, and for the torch that is there, which stays as it is.

    That torch is named even to those that are not compiled against it: it takes one version of Triton alone.
    """
    packages = list(packages)
    settings = [package.setting for package in packages if package.setting]
    torch = f"torch=={(found_version('torch') or '').partition('+')[0]}"
    wanted = [shlex.quote(text) for text in [torch] + [package.name + package.wanted for package in packages]]
    options = ["--no-build-isolation"] if any(package.builds for package in packages) else []
    return " ".join([*settings, shlex.quote(sys.executable or "python"), "-m pip install", *options, *wanted])


def found_version(name: str) -> str | None:
    """The installed version of any package; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
