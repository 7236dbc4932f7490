"""A pack: its members give the numbers that they give alone, and share nothing."""

from types import SimpleNamespace

import pytest
import torch

from hybridlm.ablate.pack import Members, RowAdamW, apart, best_way, stacked
from hybridlm.compose.build import build
from hybridlm.compose.spec import ModelSpec
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.registry import mixers
from hybridlm.train.optim import adamw, capped_schedule

SEEDS, RATES = (0, 1, 2), (1e-3, 3e-3, 1e-2)
SMALL = {"mamba2": {"d_state": 8, "head_dim": 16}, "mamba3": {"d_state": 8}, "s4": {"d_state": 8}}


def spec_of(mixer, mlp="none", **more):
    block = {"mixer": {"type": mixer, **SMALL.get(mixer, {})}, "mlp": mlp}
    return ModelSpec.from_dict({"d_model": 32, "vocab_size": 16, "pattern": "X", "blocks": {"X": block}, **more})


def batches(count, step):
    """A batch for each of `count` members at a step."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randint(16, (count, 2, 12), generator=random)
    targets = torch.randint(16, (count, 2, 12), generator=random)
    targets[:, :, ::3] = IGNORED
    return [{"ids": ids[k], "targets": targets[k]} for k in range(count)]


def train_pack(spec, way, steps=5, seeds=SEEDS, rates=RATES, clip=0.5, active=None):
    """The weights (m, n) and the losses of the steps (steps, m)."""
    members = Members(spec, seeds, 0.1, torch.device("cpu"))
    optimizer = RowAdamW(members, torch.tensor(rates), clip=clip)
    gradients, losses = way(members, "float32"), []
    for step in range(steps):
        members.gradient.zero_()
        losses.append(gradients(batches(len(seeds), step), [True] * len(seeds)))
        optimizer.step(factor=1 / (step + 1), active=active)
    return members, torch.stack(losses)


def train_alone(spec, k, steps=5, clip=0.5):
    """Member k as `hybridlm fit` would train it."""
    model = build(spec, seed=SEEDS[k]).train()
    optimizer = adamw(model, lr=RATES[k], weight_decay=0.1, betas=(0.9, 0.95))
    schedule, losses = capped_schedule(optimizer, lambda step: 1 / (step + 1), RATES[k]), []
    for step in range(steps):
        batch = batches(len(SEEDS), step)[k]
        loss = model(batch["ids"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.cat([p.detach().flatten() for p in model.parameters()]), torch.stack(losses)


def close(found, wanted, limit=1e-5):
    """RMS(error) / RMS(wanted) within the limit."""
    error = (found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert error < limit, f"{error:.2e}"


@pytest.mark.parametrize("way", [apart, stacked])
@pytest.mark.parametrize("mixer", ["attention", "mamba2", "s4d"])
def test_a_member_is_what_it_is_alone(mixer, way):
    members, losses = train_pack(spec_of(mixer, "swiglu"), way)
    for k in range(len(SEEDS)):
        weights, alone = train_alone(spec_of(mixer, "swiglu"), k)
        close(losses[:, k], alone)
        close(members.weights[k].detach(), weights)


@pytest.mark.deep
@pytest.mark.parametrize("way", [apart, stacked])
@pytest.mark.parametrize("mixer", mixers.names())
def test_every_mixer_can_be_packed(mixer, way):
    members, losses = train_pack(spec_of(mixer), way, steps=3)
    for k in range(len(SEEDS)):
        weights, alone = train_alone(spec_of(mixer), k, steps=3)
        close(losses[:, k], alone)
        close(members.weights[k].detach(), weights, 1e-4)


def test_a_model_is_a_row():
    members, _ = train_pack(spec_of("attention"), apart, steps=1)
    for k, model in enumerate(members.models):
        torch.testing.assert_close(torch.cat([p.flatten() for p in model.parameters()]), members.weights[k])
    with torch.no_grad():
        members.weights[1] = 7.0
    assert all((p == 7).all() for p in members.models[1].parameters())
    assert not any((p == 7).all() for p in members.models[0].parameters())


def test_tied_and_shared_weights_are_in_a_row_once():
    blocks = {"A": {"mixer": "attention"}}
    spec = ModelSpec.from_dict(
        {"d_model": 32, "vocab_size": 16, "pattern": "A@one A@one", "blocks": blocks, "tie_embeddings": True}
    )
    found = [train_pack(spec, way, steps=3)[0].weights.detach() for way in (apart, stacked)]
    close(*found)
    assert found[0].shape[1] == sum(p.numel() for p in build(spec, seed=0).parameters())


def test_balanced_routers_are_rebalanced_and_put_back():
    mlp = {"type": "moe", "experts": 4, "score": "sigmoid", "bias_rate": 0.01}
    members, _ = train_pack(spec_of("attention", mlp), apart, steps=2)
    (kept,) = {name for name in members.buffers()[0] if name.endswith("bias")}
    saved = [{name: buffer.clone() for name, buffer in held.items()} for held in members.buffers()]
    assert all(held[kept].any() for held in saved)
    assert not torch.equal(saved[0][kept], saved[1][kept])
    fresh = Members(spec_of("attention", mlp), SEEDS, 0.1, torch.device("cpu"))
    fresh.set_buffers(saved)
    assert all(torch.equal(held[kept], was[kept]) for held, was in zip(fresh.buffers(), saved, strict=True))


@pytest.mark.parametrize("way", [apart, stacked])
def test_a_row_that_is_not_active_stays_to_the_last_bit(way):
    before = Members(spec_of("attention"), SEEDS, 0.1, torch.device("cpu")).weights.detach()
    members, _ = train_pack(spec_of("attention"), way, active=torch.tensor([True, False, True]))
    after = members.weights.detach()
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_a_gradient_that_is_no_number_moves_nothing_and_is_told():
    members = Members(spec_of("attention"), SEEDS, 0.1, torch.device("cpu"))
    optimizer = RowAdamW(members, torch.tensor(RATES), clip=1.0)
    before = members.weights.detach().clone()
    members.gradient.normal_()
    members.gradient[2, 5] = torch.nan
    assert optimizer.step().tolist() == [False, False, True]
    assert torch.equal(members.weights[2], before[2])
    assert not torch.equal(members.weights[0], before[0])
    assert members.weights.isfinite().all()


def test_each_row_is_clipped_by_its_own_norm():
    members = Members(spec_of("attention"), (0, 0), 0.0, torch.device("cpu"))
    optimizer = RowAdamW(members, torch.tensor([1e-3, 1e-3]), clip=1.0)
    members.gradient[:] = torch.randn_like(members.gradient[0])
    members.gradient[1] *= 100
    optimizer.step()
    close(members.weights[1].detach(), members.weights[0].detach())  # as long as any, once clipped


def test_dropout_differs_between_the_members_of_a_stack():
    members = Members(spec_of("attention", dropout=0.5), (0, 0), 0.1, torch.device("cpu"))
    same = batches(1, 0) * 2
    losses = stacked(members, "float32")(same, [True, True])
    assert losses[0] != losses[1]


class OnGpu:
    """What `best_way` asks of members, on a GPU."""

    weights = SimpleNamespace(is_cuda=True)

    def __init__(self, count, spec):
        self.count, self.models = count, [build(spec, seed=0)]

    def __len__(self):
        return self.count


def test_each_pack_goes_its_quickest_way():
    attention, experts = spec_of("attention"), spec_of("attention", {"type": "moe", "experts": 2, "top_k": 1})
    assert best_way(Members(attention, SEEDS, 0.1, torch.device("cpu")), 1e6, dropout=False) == "apart"
    assert best_way(OnGpu(3, attention), 1e6, dropout=False) == "captured"
    assert best_way(OnGpu(1, attention), 1e12, dropout=False) == "captured"
    assert best_way(OnGpu(3, experts), 1e6, dropout=False) == "apart"
    assert best_way(OnGpu(3, attention), 1e6, dropout=True) == "stacked"  # masks are drawn anew
    assert best_way(OnGpu(1, attention), 1e6, dropout=True) == "apart"
    assert best_way(OnGpu(3, attention), 1e12, dropout=True) == "apart"  # so large that our kernels are quicker
