"""A tape in place of CUDA graphs."""

import pytest

from hybridlm.infer import graphs
from tests.infer.tape import TapeRecorder


@pytest.fixture
def log(monkeypatch):
    """A tape records, on the CPU; what it did."""
    monkeypatch.setattr(graphs, "recorder_for", TapeRecorder)
    monkeypatch.setattr(TapeRecorder, "log", [])
    return TapeRecorder.log
