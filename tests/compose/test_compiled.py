"""Models whose blocks are compiled where they stand: the same numbers, one compilation a kind of block and call."""

import importlib

import pytest
import torch
from torch import Tensor

import hybridlm as hl
from hybridlm.compose import compiled as compiled_module
from hybridlm.compose import readout
from hybridlm.errors import SpecError
from hybridlm.registry import mixers
from hybridlm.testing.patterns import alphabet

IDS = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(0))
VALID = torch.arange(24) < torch.tensor([[24], [17]])
SEGMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 10, [3] + [4] * 20 + [5] * 3])
MOE = {"type": "moe", "width": 16, "experts": 4, "top_k": 2}

pytestmark = pytest.mark.usefixtures("compiler")


def make(pattern: str, **spec) -> hl.HybridLM:
    spec = {"d_model": 32, "vocab_size": 40, "mlp": {"type": "swiglu", "width": 48}, "seed": 0, **spec}
    return hl.build(pattern=pattern, blocks=alphabet(), **spec)


def compiled(model: hl.HybridLM, backend: str = "aot_eager") -> hl.HybridLM:
    """Without the C++ compiler, which takes many times as long."""
    return hl.compile(model, backend=backend)


def trained(model: hl.HybridLM, **marks) -> dict[str, Tensor]:
    """The loss and every gradient."""
    model.zero_grad()
    torch.manual_seed(1)
    out = model(IDS, targets=IDS.roll(-1, 1), **marks)
    out.loss.backward()
    return {"loss": out.loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def in_pieces(model: hl.HybridLM, **marks) -> dict[str, Tensor]:
    """The loss and every gradient of two calls, the second from the state of the first."""
    model.zero_grad()
    torch.manual_seed(1)
    state, total = model.init_state(2, 32), 0
    for start, stop in ((0, 10), (10, 24)):
        said = {name: mark[:, start:stop] for name, mark in marks.items()}
        out = model(IDS[:, start:stop], state=state, targets=IDS[:, start:stop], **said)
        state, total = out.state, total + out.loss
    total.backward()
    return {"loss": total.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_places_of_shared_weights_keep_what_is_their_own():
    """A place differs from another by attributes that hide submodules, which torch.compile does not look at."""
    pattern = "[sliding_window]@a [sliding_window]@a{window: 3} [sliding_window]@a{low_rank: 2, output: next_mixer}"
    model = make(f"{pattern} [sliding_window]@a{{low_rank: 2}} [short_conv]")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    expected = trained(model)
    close(trained(compiled(model)), expected)


def test_blocks_that_are_alike_share_what_is_compiled(compiler):
    model = compiled(make("[short_conv]3 [attention]2 [short_conv]"))
    trained(model)
    assert compiler["unique_graphs"] == 3  # two kinds of blocks, and the last norm
    trained(model)
    assert compiler["unique_graphs"] == 3


def test_tokens_of_decoding_share_what_is_compiled(compiler):
    """A cache grows by every token, which is no reason to compile anew. (The prompt is read before.)"""
    model = make("[mamba2][attention]").eval()
    with torch.inference_mode():
        out = model(IDS[:, :8], state=model.init_state(2, 24))
        model, counts = compiled(model), []
        for i in range(8, 16):
            out = model(IDS[:, i : i + 1], state=out.state)
            counts.append(compiler["unique_graphs"])
    assert len(set(counts[1:])) == 1, counts  # the first tokens show what changes


def test_names_and_hooks_stay():
    model, seen = make("[short_conv] [attention]@x [attention]@x"), []
    names = list(model.state_dict())
    model.blocks[0].mlp.up_proj.register_forward_hook(lambda *call: seen.append("inside"))
    compiled(model)
    model.blocks[1].register_forward_hook(lambda *call: seen.append("around"))
    model(IDS)
    assert list(model.state_dict()) == names
    assert seen == ["inside", "around"]


def test_what_is_not_kept_is_computed_again_and_no_number_changes():
    sizes, expected = {}, trained(make("[short_conv]"))
    for share in (1.0, 0.3):
        model = hl.compile(make("[short_conv]"), backend="aot_eager_decomp_partition", memory=share)
        kept = sizes[share] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            close(trained(model), expected)
    assert sum(sizes[0.3]) < 0.9 * sum(sizes[1.0])
    with pytest.raises(SpecError, match="memory: 1"):
        hl.compile(model, memory=1.5)


def test_what_is_no_model_is_refused():
    with pytest.raises(SpecError, match="compile: a Linear"):
        hl.compile(torch.nn.Linear(2, 2))


@pytest.mark.deep
@pytest.mark.parametrize("run", [trained, in_pieces])
def test_a_model_compiles_as_a_whole_too(run):
    """By torch.compile itself. A call keeps the clock for its backward pass, and the next call moves it on."""
    compiled_module._make_room()
    model = make("[attention] [short_conv]")
    expected = run(model)
    model.compile(backend="aot_eager", fullgraph=True)
    close(run(model), expected)


@pytest.mark.parametrize("run", [trained, in_pieces])
@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_no_gradient_by_a_bit(run, every):
    """Dropout draws the same numbers again, balance losses count once, a state is used once."""
    model = make("[short_conv]2 [attention] [short_conv]", mlp=MOE, dropout=0.2)
    expected = run(model)
    model.checkpoint_blocks(every)
    found = run(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", mixers.names())
def test_checkpointing_changes_no_gradient_of_any_mixer(name):
    model = make(f"[{name}]")
    expected = in_pieces(model)
    model.checkpoint_blocks()
    found = in_pieces(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# ------------------------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_a_bare_weight_is_that_of_the_layer(tied, monkeypatch):
    """Whose hooks fire, if it has any."""
    calls, model = [], make("[short_conv]", tie_embeddings=tied)
    monkeypatch.setattr(readout, "LOGITS_AT_ONCE", 40 * 7)
    monkeypatch.setattr(readout, "TILE", 1)
    expected = trained(model)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_bare_weight", lambda self: None)
        close(trained(model), expected)
    if not tied:
        hook = model.lm_head.register_forward_hook(lambda *call: calls.append(1))
        close(trained(model), expected)
        assert len(calls) == 2 * 7 + 1 - 1  # a chunk of 7 of the 48 targets each time, forward and backward
        hook.remove()
        model.lm_head = torch.nn.Sequential(model.lm_head)
        assert model._bare_weight() is None


def test_chunks_of_the_loss_are_even_and_whole_tiles():
    assert readout._even(1000, 300) == 256
    assert readout._even(4096, 2668) == 2048
    assert readout._even(5, 300) == 128
    assert readout._even(1000, 50) == 50


def test_a_cpu_holds_few_logits_at_a_time_unless_they_would_be_computed_again():
    assert readout._tokens_at_once(gpu=False, bare=True, outputs=8192) == 256
    assert readout._tokens_at_once(gpu=False, bare=True, outputs=50304) == readout.TILE
    assert readout._tokens_at_once(gpu=False, bare=False, outputs=8192) == readout.LOGITS_AT_ONCE // 8192
    assert readout._tokens_at_once(gpu=True, bare=True, outputs=8192) == readout.MORE_AT_ONCE // 8192


# ------------------------------------------------------------------------------------------------- every mixer, deeply
def decoded(model: hl.HybridLM, **marks) -> dict[str, Tensor]:
    """Logits of a prefill, of a longer call and of three tokens, without gradients."""
    found, start = {}, 0
    with torch.inference_mode():
        state = model.init_state(2, 32)
        for stop in (10, 17, 18, 19, 20):
            said = {name: mark[:, start:stop] for name, mark in marks.items()}
            out = model(IDS[:, start:stop], state=state, **said)
            found[f"{start}:{stop}"], state, start = out.logits.clone(), out.state, stop
    return found


MARKS = [{}, {"segment_ids": SEGMENTS}, {"valid": VALID}, {"segment_ids": SEGMENTS, "valid": VALID}]


@pytest.mark.deep
@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_compiles_whole_in_every_call(name, compiler):
    model, twin = make(f"[{name}]"), compiled(make(f"[{name}]"))
    for marks in MARKS:
        for run in (trained, in_pieces, decoded):
            close(run(twin, **marks), run(model, **marks))
    assert compiler["unique_graphs"] < 60


def test_a_model_compiles_as_one_graph():
    model = make("[short_conv] [attention]@x{output: next_mixer} [attention]@x - <[short_conv]|[attention]>")
    expected = trained(model, segment_ids=SEGMENTS, valid=VALID)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    torch.manual_seed(1)
    out = whole(IDS, targets=IDS.roll(-1, 1), segment_ids=SEGMENTS, valid=VALID)
    out.loss.backward()
    close({"loss": out.loss.detach()} | {name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.deep
@pytest.mark.parametrize("pattern", ["[short_conv]", "[attention]"])
def test_by_inductor_too(pattern):
    model = make(pattern)
    expected = trained(model)
    close(trained(compiled(model, "inductor")), expected)


def test_recurrences_and_attention_are_never_computed_again():
    importlib.import_module("hybridlm.ops.ssd.vendor")
    importlib.import_module("hybridlm.ops.causal_conv.vendor")
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    heavy = graph.call_function(torch.ops.aten._scaled_dot_product_cudnn_attention.default, (x, x, x, None, True))
    recurrence = graph.call_function(torch.ops.hybridlm.mamba_ssm_ssd.default, (x,) * 8)
    light = graph.call_function(torch.ops.hybridlm.causal_conv1d.default, (x,) * 6)
    compiled_module.KeepOps()(graph)
    assert {node: node.meta.get("recompute") is not None for node in (heavy, recurrence, light, x)} == {
        heavy: True,
        recurrence: True,
        light: False,
        x: False,
    }
