"""What training logs of the routers of mixtures of experts."""

import pytest
import torch
from torch import Tensor

from hybridlm.context import Context
from hybridlm.layers.mlp import MLP, PlainConfig
from hybridlm.layers.router import RouterRecord
from hybridlm.registry import mlps
from hybridlm.train.module import LitHybridLM

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


class Weigher(MLP):
    """Writes the mean square of its weight as if it were a balance loss."""

    Config = PlainConfig
    reads_context = True

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if ctx.journal is not None:
            two = torch.tensor([0.75, 0.25])
            ctx.journal.append(RouterRecord(self.up_proj.weight.square().mean(), two, two, two.max()))
        return self.down_proj(self.up_proj(x))


@pytest.fixture
def routed(tmp_path):
    """Path of the YAML file of a model whose MLPs keep a journal."""
    mlps.register("weigher")(Weigher)
    path = tmp_path / "routed.yaml"
    path.write_text("d_model: 32\nvocab_size: 256\npattern: 'A2'\nmlp: weigher\n")
    yield path
    mlps.unregister("weigher")


def test_training_logs_what_routers_did(make_run, routed):
    run = make_run(spec=routed, max_steps=3)
    run.fit()
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert metrics["router/layer_1_overload"] == pytest.approx(1.5)
    assert metrics["router/layer_0_entropy"] == 0.75
    assert {name for name in metrics if name.startswith("router/")} == {
        f"router/layer_{i}_{name}" for i in (0, 1) for name in ("overload", "entropy", "balance_loss")
    }
    assert {name for name in metrics if name.startswith("train_")} == {"train_loss", "train_bpb"}


def test_the_logged_loss_is_the_cross_entropy(make_run, routed):
    """Bits per byte keep their meaning in training, too."""
    module = LitHybridLM(str(routed))
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    module.log_dict = logged.update
    module.optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    module.trainer = make_run().trainer
    module.trainer.datamodule = None
    step = module.training_step({"ids": IDS, "targets": IDS}, 0)
    assert step["loss"] > logged["train_loss"] == step["cross_entropy"]
    out = module.read({"ids": IDS, "targets": IDS})
    assert torch.equal(logged["train_loss"], out.cross_entropy)
    assert torch.equal(logged["router/layer_1_balance_loss"], out.router[1].balance)
