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


MIXTURES = """\
d_model: 32
vocab_size: 256
pattern: "A@x A A@x{low_rank: 2} -"
blocks:
  A:
    mixer: {type: attention, heads: 2}
    mlp: {type: moe, experts: 5, shared_width: 8, score: sigmoid, bias_rate: 0.25}
mlp: {type: moe, experts: 4, score: sigmoid}
"""


@pytest.fixture
def mixtures(tmp_path):
    """Path of the YAML file of a model with mixtures of experts, one of them shared, one without a rate."""
    path = tmp_path / "mixtures.yaml"
    path.write_text(MIXTURES)
    return path


@pytest.mark.parametrize("batches", [1, 3])
def test_biases_move_once_a_step_against_the_load_of_all_its_batches(make_run, mixtures, batches, monkeypatch):
    run, seen = make_run(spec=mixtures, max_steps=1, accumulate_grad_batches=batches), []
    add = run.module.rebalancing.add
    monkeypatch.setattr(run.module.rebalancing, "add", lambda records: (seen.append(records), add(records)))
    run.fit()
    assert len(seen) == batches
    loads = [sum(records[i].load for records in seen) for i in range(4)]
    shared, plain, fixed = (
        run.module.model.get_buffer(f"{path}.mlp.router.bias") for path in ("shared.x", "blocks.1", "blocks.3")
    )
    for bias, load in ((shared, loads[0] + loads[2]), (plain, loads[1])):
        assert torch.equal(bias, 0.25 * (load.mean() - load).sign())
        assert bias.abs().max() == 0.25
    assert (fixed == 0).all()
    assert run.module.rebalancing.loads == {}


def test_validation_moves_no_bias(make_run, mixtures):
    """By one batch, as two may move it there and back."""
    run = make_run(spec=mixtures, limit_val_batches=1)
    before = run.module.model.shared["x"].mlp.router.bias.clone()
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert torch.equal(run.module.model.shared["x"].mlp.router.bias, before)
    assert run.module.rebalancing.loads == {}


def test_a_resumed_run_is_the_run_that_never_stopped(make_run, mixtures):
    whole = make_run("whole", spec=mixtures, max_steps=5).fit()
    first = make_run("first", spec=mixtures, max_steps=5, every=3)
    first.fit()
    again = make_run("again", spec=mixtures, max_steps=5).fit(first.folder / "checkpoints" / "step-00000003")
    assert whole["model.shared.x.mlp.router.bias"].any()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name
