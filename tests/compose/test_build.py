"""Building, initialising, saving and loading models."""

import copy
import errno
import json
import os
import pathlib
import time

import pytest
import safetensors.torch
import torch
from torch import nn

import hybridlm as hl
from hybridlm.errors import CheckpointError
from hybridlm.files import write_manifest
from hybridlm.shards import ShardWriter

IDS = torch.randint(0, 50, (2, 19), generator=torch.Generator().manual_seed(0))
PATTERN = "(MA)2 S m W@x W@x{window: 3} <M|A> -"


def make(pattern: str = PATTERN, **changes) -> hl.HybridLM:
    return hl.build(pattern=pattern, d_model=32, vocab_size=50, **({"seed": 0} | changes)).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert same(make(), make())
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(make(), make(seed=1))
    torch.manual_seed(1)
    first = make(seed=None)
    torch.manual_seed(1)
    assert same(first, make(seed=None))


def test_meta_then_empty_then_weights_is_the_same_as_building():
    model = make(device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    model.init_weights(0)
    assert same(model, make())


def test_a_layer_more_changes_no_weights_but_the_depth_scaling():
    short, long = make("MAS"), make("MASA")
    scale = (8 / 6) ** 0.5
    for name, tensor in short.state_dict().items():
        other = long.state_dict()[name]
        scaled = any(part in name for part in ("out_proj", "o_proj", "down_proj", "output_linear"))
        torch.testing.assert_close(other * scale if scaled else other, tensor)


def test_shared_weights_live_once_and_follow_every_place():
    model = make()
    assert sum("shared.x" in name for name in model.state_dict()) == len(model.shared["x"].state_dict())
    assert not list(model.blocks[6].parameters())
    before = model(IDS).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.shared["x"].mixer.v_proj.weight.mul_(2)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.equal(twin(IDS).logits, before)
    model(IDS, targets=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.init_state(1, 50).layers[7].k.shape[1] == 3


def test_a_shared_place_keeps_its_weights_through_conversions():
    model = make("W@x W@x{window: 3}").to(torch.bfloat16)
    assert model(IDS).logits.dtype == torch.bfloat16
    moved = make("W@x W@x{window: 3}", device="meta").to_empty(device="cpu")
    moved.init_weights(0)
    assert torch.equal(moved(IDS).logits, make("W@x W@x{window: 3}")(IDS).logits)


def test_norm_mean_and_sum_join_mixers_as_they_say():
    summed, normed = make("<A|W>"), make("<A|W>", combine="norm_mean")
    x = torch.randn(2, 5, 32)
    block = summed.blocks[0].mixer
    ctx = hl.Context.of(x)
    torch.testing.assert_close(block(x, None, ctx)[0], sum(mixer(x)[0] for mixer in block.mixers))
    block = normed.blocks[0].mixer
    outputs = [mixer(x)[0] for mixer in block.mixers]
    expected = sum(y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() for y in outputs) / 2
    torch.testing.assert_close(block(x, None, ctx)[0], expected)


def test_a_tied_model_has_one_matrix_and_an_untied_one_two():
    assert make(tie_embeddings=True).lm_head is None
    tied, untied = (sum(p.numel() for p in make(tie_embeddings=tie).parameters()) for tie in (True, False))
    assert untied - tied == 50 * 32


def test_a_float32_residual_is_carried_beside_bf16_weights():
    seen = {}
    model = make("MA", dtype=torch.bfloat16, residual_in_fp32=True)
    model.blocks[1].register_forward_hook(lambda _, args, out: seen.update(inputs=args[0], outputs=out[0]))
    model.blocks[1].mixer.register_forward_hook(lambda _, args, out: seen.update(mixer=args[0]))
    model(IDS)
    assert seen["inputs"].dtype == seen["outputs"].dtype == torch.float32
    assert seen["mixer"].dtype == torch.bfloat16


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_the_norm_that_was_asked_for_is_everywhere(norm):
    model = make("MA", norm=norm)
    has_bias = [name for name, _ in model.named_parameters() if name.endswith("norm.bias")]
    assert bool(has_bias) == (norm == "layernorm")


def test_the_loss_is_the_mean_over_targets_that_count():
    model = make("MA")
    targets = torch.full_like(IDS, -100)
    targets[0, :7] = IDS[0, 1:8]
    expected = nn.functional.cross_entropy(model(IDS).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(IDS, targets=targets).loss, expected)
    assert model(IDS, targets=torch.full_like(IDS, -100)).loss == 0
    valid = torch.ones_like(IDS, dtype=torch.bool)
    valid[0, 3:] = False
    padded = model(IDS, targets=targets, valid=valid).loss
    padded_with_anything = model(IDS, targets=targets.masked_fill(~valid, -1), valid=valid).loss
    torch.testing.assert_close(padded, padded_with_anything)
    targets[0, 3:] = -100
    torch.testing.assert_close(padded, model(IDS, targets=targets).loss)


# ------------------------------------------------------------------------------------------------- saving and loading
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    model = make(dtype=torch.bfloat16, tie_embeddings=True)
    hl.save(model, tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path):
        loaded = hl.load(folder)
        assert same(model, loaded)
        assert loaded.spec == model.spec
        assert torch.equal(model(IDS).logits, loaded(IDS).logits)


def test_every_flipped_bit_in_a_saved_model_is_noticed(tmp_path):
    hl.save(make("A"), tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("model.safetensors", "config.json", "manifest.json"):
        blob = (tmp_path / name).read_bytes()
        for bit in torch.randint(0, len(blob) * 8, (40,), generator=generator).tolist():
            damaged = bytearray(blob)
            damaged[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CheckpointError):
                hl.load(tmp_path)
        (tmp_path / name).write_bytes(blob[: len(blob) // 2])
        with pytest.raises(CheckpointError):
            hl.load(tmp_path)
        (tmp_path / name).write_bytes(blob)
    hl.load(tmp_path)


def test_all_mismatches_between_weights_and_spec_are_listed_at_once(tmp_path):
    hl.save(make("A"), tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["stranger"] = torch.zeros(2)
    weights["lm_head.weight"] = torch.zeros(3, 3)
    del weights["final_norm.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    write_manifest(tmp_path, ["model.safetensors", "config.json"])
    with pytest.raises(CheckpointError) as caught:
        hl.load(tmp_path)
    for part in ("stranger: not in the model", "final_norm.weight: missing", "lm_head.weight: shape (3, 3)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"format": 1}', '{"format": 99}', '{"format": 1, "spec": {"d_model": 3}}']
)
def test_a_config_that_is_none_is_refused(tmp_path, content):
    hl.save(make("A"), tmp_path)
    (tmp_path / "config.json").write_text(content)
    write_manifest(tmp_path, ["model.safetensors", "config.json"])
    with pytest.raises(ValueError):
        hl.load(tmp_path)


def test_a_manifest_that_lists_nothing_verifies_nothing(tmp_path):
    hl.save(make("A"), tmp_path)
    write_manifest(tmp_path, [])
    with pytest.raises(CheckpointError, match="not in manifest"):
        hl.load(tmp_path)


def test_a_model_without_weights_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="no weights yet"):
        hl.save(make("A", device="meta"), tmp_path)


def test_loading_from_nowhere_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        hl.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        hl.load(tmp_path)


def test_a_model_that_cannot_fit_is_refused_before_it_is_made():
    with pytest.raises(hl.SpecError, match="make it smaller"):
        hl.build(pattern="A", d_model=1 << 20, vocab_size=50)


def test_every_source_of_a_spec_gives_the_same_model(tmp_path):
    model = make("MA")
    (tmp_path / "m.yaml").write_text(model.spec.to_yaml())
    for source in (model.spec, model.spec.to_dict(), tmp_path / "m.yaml", str(tmp_path / "m.yaml")):
        assert same(hl.build(source, seed=0), model)
    assert hl.build(tmp_path / "m.yaml", dropout=0.5).spec.dropout == 0.5
    with pytest.raises(hl.SpecError, match="is no spec"):
        hl.build(3)
    assert json.loads(json.dumps(model.spec.to_dict())) == model.spec.to_dict()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": torch.complex64},
        {"dtype": torch.int32},
        {"dtype": "float32"},
        {"device": "nowhere"},
        {"device": "cuda:99"},
        {"seed": "x"},
        {"seed": 1.5},
        {"seed": True},
        {"blocks": {1: {"mixer": "attention"}}},
        {"dropout": 10**400},
    ],
    ids=str,
)
def test_every_wrong_argument_is_named(wrong):
    (field,) = wrong
    with pytest.raises(hl.SpecError, match=field):
        hl.build(**({"pattern": "A", "d_model": 32, "vocab_size": 50} | wrong))


def test_memory_is_asked_for_before_layers_are_made():
    start = time.process_time()
    with pytest.raises(hl.SpecError, match="make it smaller"):
        hl.build(pattern="A4096", d_model=2048, vocab_size=50)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("failing", "after"),
    [("write", 0), ("write", 9), ("write_text", 0), *((word, n) for word in ("fsync", "replace") for n in range(5))],
)
def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path, monkeypatch, failing, after):
    """A full disk at any moment: the old model loads, and no litter is left."""
    old = make("A")
    hl.save(old, tmp_path)
    listing = sorted(path.name for path in tmp_path.iterdir())
    owner = {"write": ShardWriter, "write_text": pathlib.Path, "fsync": os, "replace": os}[failing]
    real, calls = getattr(owner, failing), []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space left"):
        hl.save(make("A", seed=1), tmp_path)
    monkeypatch.undo()
    assert same(hl.load(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == listing


def test_saving_over_a_model_replaces_it_and_leaves_strangers_alone(tmp_path):
    hl.save(make("A"), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    new = make("MA", seed=1)
    hl.save(new, tmp_path)
    assert same(hl.load(tmp_path), new)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_a_shared_place_under_another_config_sees_replaced_parts_and_hooks():
    model = make("W@x W@x{window: 3}")
    calls = []
    model.shared["x"].mixer.q_proj.register_forward_hook(lambda *_: calls.append("q"))
    model.shared["x"].register_forward_hook(lambda *_: calls.append("block"))
    model(IDS)
    assert calls == ["q", "block"] * 2
    model.shared["x"].mlp = nn.Identity()
    model.shared["x"].mlp.register_forward_hook(lambda *_: calls.append("mlp"))
    model(IDS)
    assert calls.count("mlp") == 2
    assert model.blocks[1].mixer.config.window == 3


def test_what_hangs_on_the_head_takes_part_in_the_loss():
    model = make("A")
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    plain = model(IDS, targets=IDS).loss
    model.lm_head = nn.Sequential(model.lm_head, nn.Linear(50, 50))
    changed = model(IDS, targets=IDS).loss
    assert calls == [1, 1]
    torch.testing.assert_close(changed, nn.functional.cross_entropy(model(IDS).logits.flatten(0, 1), IDS.flatten()))
    assert plain != changed


@pytest.mark.parametrize("wrong", [[[1]], None, 3, IDS.tolist()], ids=str)
def test_what_is_no_tensor_is_refused(wrong):
    model = make("A")
    calls = [lambda: model(wrong), lambda: model(wrong, targets=IDS), lambda: model.hidden(wrong)]
    calls += [lambda: model(IDS, targets=wrong or 3), lambda: model(IDS, targets=IDS, valid=wrong or 3)]
    for call in calls:
        with pytest.raises(hl.SpecError, match="it must be a tensor"):
            call()


def test_targets_of_small_dtypes_are_read_before_pads_are_marked():
    model = hl.build(pattern="A", d_model=32, vocab_size=256, seed=0)
    valid = torch.arange(19) < torch.tensor([[7], [19]])
    losses = [model(IDS, targets=IDS.to(dtype), valid=valid).loss for dtype in (torch.int64, torch.uint8)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("path", [None, 3, ["a"]])
def test_what_is_no_path_is_refused(path):
    for call in (lambda: hl.load(path), lambda: hl.save(make("A"), path), lambda: hl.load_state(path)):
        with pytest.raises(ValueError, match="not a path"):
            call()
    with pytest.raises(hl.SpecError, match="no HybridLM"):
        hl.save(nn.Linear(2, 2), "unwritten")
