"""A mixer of somebody else's goes into the file with everything that it takes from its own package."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from remote_models import SIZES, built

from hybridlm.errors import ExportError
from hybridlm.export.remote.write import lower_remote, write_remote
from hybridlm.registry import mixers

MIXER = '''
"""A running mean."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
{imports}
from hybridlm.layers.cost import Cost
from hybridlm.layers.mixer import Mixer
from hybridlm.state import LayerState
from their_mixers.sums import counted


@dataclass(frozen=True, kw_only=True)
class MeanConfig:
    scale: float = 1.0

    def resolve(self, d_model):
        return replace(self, scale=float(self.scale))


@dataclass
class MeanState(LayerState):
    kind = "their_mean"
    total: Tensor
    count: Tensor


class Mean(Mixer):
    Config = MeanConfig
    State = MeanState
    recurrent = True
    residual_projections = ("out_proj",)

    def __init__(self, config, d_model, *, eps=1e-5):
        super().__init__(config, d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams=None):
        nn.init.eye_(self.out_proj.weight)

    def init_state(self, batch, max_length, *, device=None, dtype=None):
        return MeanState(torch.zeros(batch, self.d_model, device=device), torch.zeros(batch, 1, device=device))

    def forward(self, x, state=None, ctx=None):
        x, ctx = self.enter(x, state, ctx)
        real = torch.ones_like(x[..., :1]) if ctx.valid is None else ctx.valid[..., None].to(x.dtype)
        total, count = counted(x, None if state is None else state.total), counted(real, state and state.count)
        y = self.out_proj(rearrange(self.config.scale * total / count.clamp(min=1), "b t d -> b t d"))
        return {result}, None if state is None else state.advance(total=total[:, -1], count=count[:, -1])

    @classmethod
    def cost(cls, config, d_model):
        return Cost(d_model * d_model)
'''
SUMS = "def counted(x, before):\n    x = x.cumsum(dim=1)\n    return x if before is None else x + before[:, None]\n"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """(import lines, result) -> the registered class of a fresh package."""
    monkeypatch.syspath_prepend(tmp_path)

    def register(imports="", result="y"):
        (tmp_path / "their_mixers").mkdir()
        files = {"__init__": "", "sums": SUMS, "mean": MIXER.format(imports=imports, result=result)}
        for name, text in files.items():
            (tmp_path / "their_mixers" / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        mixers.register("their_mean")(importlib.import_module("their_mixers.mean").Mean)

    yield register
    mixers.unregister("their_mean")
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_mixers"]:
        del sys.modules[name]


def spec():
    return {
        **SIZES,
        "pattern": "NA",
        "blocks": {"N": {"mixer": {"type": "their_mean", "scale": 0.5}}, "A": {"mixer": "attention"}},
    }


def test_a_mixer_of_another_package_is_copied_with_what_it_takes(theirs, tmp_path):
    theirs()
    lower_remote(built(spec()), tmp_path / "out")
    text = (tmp_path / "out" / "modeling_hybridlm.py").read_text()
    assert "def counted(x, before):" in text
    assert "import their_mixers" not in text
    assert "from their_mixers" not in text


def test_a_mixer_that_needs_more_than_torch_is_refused_by_name(theirs, tmp_path):
    theirs(imports="import numpy as np\n", result="y * float(np.float32(1))")
    with pytest.raises(ExportError, match=r"remote-code: their_mixers.mean imports numpy.*plain PyTorch"):
        write_remote(built(spec()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("Typed", "typed_in: its source is not there"), ("f.Typed", "top of a mod")]
)
def test_a_mixer_without_a_text_of_its_own_is_refused(name, words, tmp_path, monkeypatch):
    typed = type("Typed", (mixers.get("attention"),), {"__module__": "typed_in", "__qualname__": name})
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))
    mixers.register("their_typed")(typed)
    try:
        with pytest.raises(ExportError, match=words):
            write_remote(built({**SIZES, "pattern": "N", "blocks": {"N": {"mixer": "their_typed"}}}), tmp_path / "out")
    finally:
        mixers.unregister("their_typed")


def test_what_transformers_does_not_find_again_leaves_nothing(theirs, tmp_path):
    """A mixer whose answer hangs on its package being there is not the same without."""
    theirs(imports="import sys\n", result="y if 'their' in type(self).__module__ else -y")
    with pytest.raises(ExportError, match="what was written is not the model"):
        lower_remote(built(spec()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert torch.is_tensor(built(spec())(torch.zeros(1, 2, dtype=torch.int64)).logits)
