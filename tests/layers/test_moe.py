"""The mixture of experts: its formula, who is chosen, what is recorded, and its place in a model."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.moe import MoE
from hybridlm.ops.backend import use
from hybridlm.testing import check_model, require
from hybridlm.train.optim import parameter_groups

D_MODEL = 24
CONFIGS = {
    "default": {},
    "switch": {"experts": 5, "top_k": 1, "normalize": False, "expert": "gelu"},
    "one expert": {"experts": 1, "top_k": 1, "width": 7},
    "all experts": {"experts": 3, "top_k": 3, "expert": "geglu", "scale": 0.3},
    "sigmoid": {"experts": 7, "top_k": 3, "score": "sigmoid", "scale": 2.5, "shared_width": 9, "expert": "relu2"},
    "shared gate": {"experts": 4, "shared_width": 11, "shared_gate": True, "normalize": False, "score": "sigmoid"},
}
BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8}, "mlp": {"type": "moe", "experts": 4}},
    "A": {
        "mixer": {"type": "attention", "heads": 2},
        "mlp": {"type": "moe", "experts": 5, "top_k": 3, "score": "sigmoid", "shared_width": 8, "shared_gate": True},
    },
}
SPEC = {"pattern": "MA", "d_model": 32, "vocab_size": 20, "blocks": BLOCKS}


def make(label: str = "default", **changes) -> MoE:
    torch.manual_seed(3)
    moe = MoE(MoE.Config(**{**CONFIGS[label], **changes}), D_MODEL).double()
    with torch.no_grad():
        for tensor in moe.state_dict().values():
            tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)
    return moe


def tokens(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randn(rows, length, D_MODEL, dtype=torch.float64)


def by_hand(moe: MoE, x: Tensor) -> Tensor:
    """One token, expert by expert."""
    c, weights = moe.config, dict(moe.named_parameters())

    def mlp(gate, up, down):
        act = {"swiglu": F.silu, "geglu": F.gelu, "gelu": F.gelu, "relu2": lambda z: z.clamp(min=0) ** 2}[c.expert]
        return down @ (act(up @ x) if gate is None else act(gate @ x) * (up @ x))

    def expert(e):
        names = [f"experts.{name}_proj.weight" for name in ("gate", "up", "down")]
        return mlp(*(weights[name][e] if name in weights else None for name in names))

    logits = (weights["router.weight"] @ x).tolist()
    total = sum(map(math.exp, logits))
    scores = [1 / (1 + math.exp(-z)) if c.score == "sigmoid" else math.exp(z) / total for z in logits]
    bias = moe.router.bias.tolist() if c.score == "sigmoid" else [0.0] * c.experts
    chosen = sorted(range(c.experts), key=lambda e: -(scores[e] + bias[e]))[: c.top_k]
    whole = sum(scores[e] for e in chosen) if c.normalize else 1.0
    y = sum(c.scale * scores[e] / whole * expert(e) for e in chosen)
    if c.shared_width:
        shared = mlp(*(weights.get(f"shared.{name}_proj.weight") for name in ("gate", "up", "down")))
        y = y + shared * (torch.sigmoid(weights["shared_gate.weight"][0] @ x) if c.shared_gate else 1.0)
    return y


# ----------------------------------------------------------------------------------------------------- what it computes
@pytest.mark.parametrize("label", CONFIGS)
def test_every_token_is_the_formula(label):
    moe, x = make(label), tokens()
    truth = torch.stack([by_hand(moe, token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(moe(x), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("label", CONFIGS)
def test_a_token_does_not_depend_on_the_others(label):
    """However crowded its expert is: nothing is dropped."""
    moe, x = make(label), tokens(1, 40)
    crowd = torch.cat([x, x[:, :1].expand(1, 500, D_MODEL)], dim=1)
    alone = torch.cat([moe(token[None, None]) for token in x[0]], dim=1)
    torch.testing.assert_close(moe(crowd)[:, :40], alone, rtol=1e-12, atol=1e-12)


def test_of_equal_scores_the_lower_number_wins():
    moe = make("switch", top_k=3)
    x = torch.zeros(1, 2, D_MODEL, dtype=torch.float64)
    assert moe.router(x)[0].tolist() == [[[0, 1, 2]] * 2]
    with torch.no_grad():
        moe.router.weight[4] = moe.router.weight[1] = moe.router.weight[1].abs() + 10
    assert moe.router(x + 1)[0][0, 0, :2].tolist() == [1, 4]


@pytest.mark.parametrize("label", CONFIGS)
def test_a_token_that_is_not_finite_spoils_no_other(label):
    moe, x = make(label), tokens(1, 6)
    clean, dirty = moe(x), x.clone()
    dirty[0, 2] = torch.nan
    dirty[0, 4, 3] = torch.inf
    y = moe(dirty)
    torch.testing.assert_close(y[0, [0, 1, 3, 5]], clean[0, [0, 1, 3, 5]])
    assert not y[0, 2].isfinite().any()


@pytest.mark.parametrize("label", CONFIGS)
def test_gradients(label):
    """In float64 and away from ties: where the choice flips, there is no derivative."""
    moe, x = make(label, width=3), tokens(1, 5).requires_grad_()
    names = [name for name, _ in moe.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *moe.parameters()), fast_mode=True)


def test_an_expert_whom_nobody_chose_has_a_gradient_of_zero():
    moe = make("switch")
    x = tokens(1, 1)
    moe(x).sum().backward()
    chosen = moe.router(x)[0].item()
    for layer in (moe.experts.up_proj, moe.experts.down_proj):
        busy = layer.weight.grad.abs().amax(dim=(1, 2)) > 0
        assert busy.tolist() == [e == chosen for e in range(5)]


@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("length", [1, 9])
def test_where_nothing_can_be_counted_it_is_the_same(label, length, monkeypatch):
    moe, x = make(label), tokens(2, length)
    y = moe(x)
    torch.testing.assert_close(torch.vmap(moe)(x[:, None])[:, 0], y, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(moe(x), y, rtol=1e-12, atol=1e-12)


def test_the_router_is_float32_whatever_the_rest_is():
    """In bfloat16 a score has 8 bits; here two experts differ by less."""
    moe = MoE(MoE.Config(experts=2, top_k=1), D_MODEL)
    with torch.no_grad():
        moe.router.weight.copy_(torch.ones(2, D_MODEL))
        moe.router.weight[1, 0] += 2**-7
    x = torch.full((1, 1, D_MODEL), 16.0)
    for run in (moe, copy.deepcopy(moe).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16, enabled=run is moe):
            chosen, weights, scores = run.router(x.to(run.router.weight.dtype))
            assert run(x.to(run.router.weight.dtype)).dtype == torch.bfloat16
        assert chosen.item() == 1
        assert weights.dtype == scores.dtype == torch.float32
        assert scores.flatten().tolist() == pytest.approx([0.46879, 0.53121], abs=1e-4)


# ----------------------------------------------------------------------------------------------------- what is recorded
def record_of(moe: MoE, x: Tensor, valid: Tensor | None = None):
    journal = []
    moe(x, Context(torch.arange(x.shape[1]).expand(x.shape[:2]), valid=valid, journal=journal))
    (record,) = journal
    return record


@pytest.mark.parametrize("label", CONFIGS)
def test_the_record_is_counted_by_hand(label):
    moe, x = make(label), tokens()
    record, c = record_of(moe, x), moe.config
    chosen, _, scores = moe.router(x.flatten(0, 1))
    shares = scores / scores.sum(-1, keepdim=True)
    load = torch.tensor([(chosen == e).sum() / 18 for e in range(c.experts)], dtype=torch.float64)
    torch.testing.assert_close(record.load, load)
    assert float(record.load.sum()) == pytest.approx(c.top_k)
    torch.testing.assert_close(record.importance, shares.mean(0))
    torch.testing.assert_close(record.entropy, -(shares * shares.log()).sum(-1).mean())
    torch.testing.assert_close(record.balance, 0.01 * c.experts * (load * shares.mean(0)).sum())
    assert float(record.overload) == pytest.approx(float(load.max() * c.experts / c.top_k))


@pytest.mark.parametrize("label", ["default", "sigmoid"])
def test_pads_count_in_no_number(label):
    moe, x = make(label), tokens(3, 9)
    valid = torch.arange(9) < torch.tensor([9, 4, 0])[:, None]
    x[2] = torch.nan
    x[1, 4:] = 1e4
    real, apart = record_of(moe, x, valid), record_of(moe, x[valid][None])
    for name in ("balance", "load", "importance", "entropy"):
        torch.testing.assert_close(getattr(real, name), getattr(apart, name))
    gradient = torch.autograd.grad(real.balance, moe.router.weight)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(apart.balance, moe.router.weight)[0])


def test_a_call_of_pads_alone_counts_nothing():
    record = record_of(make(), tokens(), torch.zeros(2, 9, dtype=torch.bool))
    sums = [x.detach().sum() for x in (record.balance, record.load, record.importance, record.entropy)]
    assert sums == [0] * 4
    assert record.overload == 0


def test_minimising_the_balance_loss_balances():
    moe, x = make(balance=1.0), tokens(8, 64) + 0.5
    before = float(record_of(moe, x).overload)
    optimizer = torch.optim.Adam(moe.router.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        record_of(moe, x).balance.backward()
        optimizer.step()
    after = record_of(moe, x)
    assert before > 1.4 > 1.2 > after.overload
    assert after.balance.item() == pytest.approx(2, rel=0.01)  # top_k, where loads are even


def test_the_bias_chooses_and_weighs_nothing():
    moe, x = make("sigmoid", normalize=False, scale=1.0), tokens()
    with torch.no_grad():
        moe.router.bias.zero_()
        moe.router.bias[5] = 10.0
    chosen, weights, scores = moe.router(x)
    assert (chosen[..., 0] == 5).all()
    torch.testing.assert_close(weights, scores.gather(-1, chosen))
    assert weights.max() < 1


def test_rebalancing_moves_the_bias_and_with_it_the_load():
    moe, x = make("sigmoid", bias_rate=0.01), tokens(8, 64) + 0.5
    moe.router.bias.zero_()
    before = record_of(moe, x)
    moe.router.rebalance(before.load)
    expected = [0.01 if load < 3 / 7 else -0.01 for load in before.load.tolist()]
    assert moe.router.bias.tolist() == pytest.approx(expected)
    for _ in range(200):
        moe.router.rebalance(record_of(moe, x).load)
    assert record_of(moe, x).overload < 1.15 < before.overload


# -------------------------------------------------------------------------------------------------------- its settings
@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("length", [1, 13])
def test_cost_is_what_it_is(label, length):
    moe, x = make(label), tokens(1, length)
    cost = MoE.cost(moe.config, D_MODEL)
    assert cost.parameters == sum(parameter.numel() for parameter in moe.parameters())
    with FlopCounterMode(display=False) as counter:
        moe(x)
    assert counter.get_total_flops() == cost.forward(length, 0).matmul == 2 * length * cost.active


@pytest.mark.parametrize("d_model", [32, 33, 97, 256, 1031])
def test_by_default_a_token_pays_for_the_mlp_without_experts(d_model):
    for expert in ("swiglu", "relu2"):
        config = MoE.Config(expert=expert).resolve(d_model)
        dense = hl.registry.mlps.get(expert)
        router = config.experts * d_model
        assert (
            MoE.cost(config, d_model).active - router == dense.cost(dense.Config().resolve(d_model), d_model).parameters
        )
    shared = MoE.Config(experts=4, top_k=3, shared_width=20).resolve(d_model)
    assert -3 < shared.shared_width + 3 * shared.width - 64 * -(-d_model // 24) <= 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_k": 9}, "top_k: 9 is more than experts = 8; use 8 at most"),
        ({"top_k": 0}, "top_k: 0 is out of range"),
        ({"experts": True}, "experts: True is not an integer"),
        ({"experts": 0, "top_k": 1}, "experts: 0 is out of range"),
        ({"experts": 5000}, "from 1 to 4096"),
        ({"width": 0}, "width: 0"),
        ({"shared_width": -1}, "shared_width: -1"),
        ({"shared_width": 64}, "width: give it, as shared_width = 64 takes all of the default 64"),
        ({"shared_gate": True}, "shared_gate: true, but shared_width is 0"),
        ({"expert": "swigul"}, "did you mean 'swiglu'"),
        ({"score": "softmx"}, "did you mean 'softmax'"),
        ({"normalize": 1}, "normalize: 1; it must be true or false"),
        ({"scale": 0.0}, "scale: 0.0"),
        ({"scale": float("nan")}, "scale: nan"),
        ({"balance": -0.1}, "balance: -0.1"),
        ({"bias_rate": 0.001}, "bias_rate: 0.001 needs score: sigmoid"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(SpecError) as error:
        MoE.Config(**config).resolve(24)
    assert message.lower() in str(error.value).lower()


# ---------------------------------------------------------------------------------------------------------- in a model
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.deep)])
def test_a_model_of_experts_keeps_every_law(dtype):
    """Splits, padding on either side, packing, selection, reload, hooks, accounting, and the rest."""
    require(check_model(SPEC, dtype=dtype))


def test_groups_of_the_optimiser():
    model = hl.build(SPEC, seed=0)
    names = {
        n: group["weight_decay"] for group in parameter_groups(model, weight_decay=0.1, lr=1.0) for n in group["names"]
    }
    assert {name: decay for name, decay in names.items() if ".mlp." in name} == {
        f"blocks.{i}.mlp.{name}.weight": 0.1
        for i, parts in enumerate([(), ("shared.gate_proj", "shared.up_proj", "shared.down_proj", "shared_gate")])
        for name in ("router", "experts.gate_proj", "experts.up_proj", "experts.down_proj", *parts)
    }
    assert "blocks.1.mlp.router.bias" in model.state_dict()


def test_projections_to_the_residual_stream_are_scaled_by_depth():
    shallow, deep = hl.build(SPEC, seed=0), hl.build(SPEC, pattern="MAM", seed=0)
    for name in ("experts.down_proj", "shared.down_proj", "experts.up_proj", "router"):
        one, other = (model.get_parameter(f"blocks.1.mlp.{name}.weight") for model in (shallow, deep))
        scale = (4 / 6) ** 0.5 if "down" in name else 1.0
        torch.testing.assert_close(other, one * scale)
    down = shallow.get_parameter("blocks.1.mlp.experts.down_proj.weight")
    assert 0.9 < down.std() * (3 * down.shape[-1] * 4) ** 0.5 < 1.1


def test_first_values_come_from_streams_of_their_own():
    few, many = (make("sigmoid", experts=n).float() for n in (7, 9))
    for moe in (few, many):
        moe.reset_parameters(Streams(5))
    assert torch.equal(few.shared.up_proj.weight, many.shared.up_proj.weight)
    assert torch.equal(few.router.bias, torch.zeros(7))
    weights = [p for name, p in many.named_parameters() if "experts" in name or "router" in name]
    assert len({p.flatten()[0].item() for p in weights}) == len(weights)


def test_bias_and_experts_survive_a_folder(tmp_path):
    model = hl.build(SPEC, seed=0)
    model.blocks[1].mlp.router.bias.copy_(torch.arange(5.0))
    hl.save(model, tmp_path)
    loaded = hl.load(tmp_path)
    assert not loaded.blocks[1].mlp.router.bias.requires_grad
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_gradients_of_each_row_by_vmap():
    """Nothing can be counted there; the balance loss is that of the row."""
    model = hl.build(SPEC, seed=0).double()
    ids = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, ids):
        return torch.func.functional_call(model, (parameters, buffers), (ids[None],), {"targets": ids[None]}).loss

    with use("reference"):
        rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, ids)
    for i, row in enumerate(ids):
        model.zero_grad()
        model(row[None], targets=row[None]).loss.backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(rows[name][i], parameter.grad, rtol=1e-9, atol=1e-9)


def test_the_cost_of_a_model_says_what_a_token_uses():
    cost = model_cost(hl.build(SPEC, seed=0).spec)
    idle = 2 * 3 * 32 * 64 + 2 * 3 * 32 * cost.layers[1].plan.mlp.config.width  # 4 - 2 and 5 - 3 experts
    assert cost.parameters - cost.active == idle
    dense = model_cost(hl.build(pattern="MA", d_model=32, vocab_size=20).spec)
    assert dense.active == dense.parameters


@pytest.mark.usefixtures("compiler")
def test_a_model_compiles_into_one_graph():
    ids = torch.arange(12).view(2, 6)
    model = hl.build(pattern="A", d_model=32, vocab_size=20, mlp="moe", seed=0)
    compiled = torch.compile(lambda ids: model(ids, targets=ids), fullgraph=True, backend="eager")
    ours, true = compiled(ids), model(ids, targets=ids)
    torch.testing.assert_close(ours.loss, true.loss)
    assert torch.equal(ours.router[0].load, true.router[0].load)
