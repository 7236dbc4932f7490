"""Models beside their exports as remote code, each made once; transformers is imported when the first is asked for."""

from functools import lru_cache

import pytest

STACKS = ("mixers", "forms", "experts")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """name -> the pair."""
    import remote_models

    return lru_cache(lambda name: remote_models.Pair(remote_models.STACKS[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(params=STACKS)
def pair(request, pairs):
    return pairs(request.param)


@pytest.fixture(params=["forms", "experts", pytest.param("mixers", marks=pytest.mark.deep)])
def some(request, pairs):
    return pairs(request.param)


@pytest.fixture
def forms(pairs):
    return pairs("forms")


@pytest.fixture(scope="session")
def attention(tmp_path_factory):
    """A model that can forget."""
    from remote_models import SIZES, Pair

    return Pair({**SIZES, "pattern": "AL"}, tmp_path_factory.mktemp("attention"))
