"""What every test shares: hypothesis profiles, one thread, shape checks at the doors of ops and layers, one seed."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from importlib.machinery import PathFinder

import hypothesis
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not torch.cuda.is_available():  # Triton then interprets kernels, if told so before it reads them
    os.environ.setdefault("TRITON_INTERPRET", "1")

CHECKED = ["hybridlm.ops", "hybridlm.layers"]  # the rooms whose doors carry jaxtyping annotations
_hook = ExitStack()

_common = {"deadline": None, "derandomize": True, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", max_examples=25, **_common)
hypothesis.settings.register_profile("deep", max_examples=300, **_common)


class _Kernels:
    """Finds our Triton files before the shape checks do: Triton reads a kernel's source, and takes nothing wrapped."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        kernels = name.startswith("hybridlm.") and name.rpartition(".")[2].startswith("triton")
        return PathFinder.find_spec(name, path, target) if kernels else None


def pytest_configure(config: pytest.Config) -> None:
    """Before any test file imports hybridlm. HYBRIDLM_CHECK_SHAPES=0 turns the shape checks off, for torch.compile."""
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
    if os.environ.get("HYBRIDLM_CHECK_SHAPES", "1") != "0":
        from shape_checks import checked

        _hook.enter_context(checked(CHECKED))
        sys.meta_path.insert(0, _Kernels)
    torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    _hook.close()


@pytest.fixture
def compiler():
    """Statistics of torch.compile, which has compiled nothing yet."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["stats"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same stream, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def rng():
    """A generator of the test's own (torch.Generator, CPU, seed 0)."""
    return torch.Generator().manual_seed(0)
