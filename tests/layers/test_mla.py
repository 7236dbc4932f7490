"""Latent attention: two forms of the same, what is remembered, what is refused."""

from functools import partial

import pytest
import torch

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.compose.plan import plan
from hybridlm.errors import SpecError
from hybridlm.layers.mla import LatentAttention
from hybridlm.ops.attention import attention
from hybridlm.ops.backend import trace, use

D_MODEL = 24
SIZES = {"heads": 3, "kv_rank": 10, "nope_dim": 6, "rope_dim": 4, "v_dim": 5}


def make(**changes) -> LatentAttention:
    torch.manual_seed(1)
    mixer = LatentAttention(LatentAttention.Config(**SIZES | changes), D_MODEL).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return mixer


def spy(monkeypatch) -> list[str]:
    """Names of the forms that run."""
    seen = []
    for name in ("attend_heads", "attend_latents"):
        true = getattr(LatentAttention, name)

        def watched(self, *inputs, name=name, true=true, **options):
            seen.append(name)
            return true(self, *inputs, **options)

        monkeypatch.setattr(LatentAttention, name, watched)
    return seen


@pytest.mark.parametrize("sizes", [{}, {"q_rank": 4}, {"rope": False, "rope_dim": 3}, {"kv_rank": 2}, {"v_dim": 1}])
@pytest.mark.parametrize("t", [1, 4, 9])
def test_both_forms_are_the_same(sizes, t):
    mixer = make(**sizes)
    c = mixer.config
    q, latent, key = (
        torch.randn(2, n, *w).double() for n, w in ((t, (3, c.qk_dim)), (9, (c.kv_rank,)), (9, (c.rope_dim,)))
    )
    mask = (torch.arange(9) <= torch.arange(9 - t, 9)[:, None]).expand(2, -1, -1)
    inputs = [x.requires_grad_() for x in (q, latent, key)]
    see = partial(attention, mask=mask)
    truth, y = mixer.attend_heads(*inputs, see), mixer.attend_latents(*inputs, see)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    seed, trained = torch.randn_like(y), [*inputs, mixer.k_up, mixer.v_up]
    expected = torch.autograd.grad(truth, trained, seed)
    for one, other in zip(torch.autograd.grad(y, trained, seed), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_the_cheaper_form_runs(monkeypatch):
    """Prefill makes keys and values, decoding goes to the latents, and so does a short chunk after a long past."""
    seen, mixer, x = spy(monkeypatch), make(), torch.randn(1, 60, D_MODEL).double()
    state, pieces = mixer.init_state(1, 60, dtype=x.dtype), []
    for piece in x.split([40, 1, 2, 17], dim=1):
        y, state = mixer(piece, state)
        pieces.append(y)
    assert seen == ["attend_heads", "attend_latents", "attend_latents", "attend_heads"]
    torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x)[0], rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_one_token_is_a_call_to_a_cache():
    """Which our kernel of decoding takes: one head of latents serves all queries, keys are wider than values."""
    mixer, x = make().float(), torch.randn(2, 13, D_MODEL)
    rows, found = torch.tensor([12, 7]), {}
    for backend in ("reference", "triton"):
        _, state = mixer(x[:, :12], mixer.init_state(2, 32))
        state.cursor.position.copy_(rows)  # rows of several lengths; slots past them are poison
        for cache in state.tensors().values():
            cache[torch.arange(32) >= rows[:, None]] = 1e4
        with use(backend), trace() as seen:
            found[backend], _ = mixer(x[:, 12:], state)
        assert ("cached_attention", backend) in [(one.op, one.backend) for one in seen]
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("past", [3, 50])
def test_documents_behind_a_cache_take_either_form(past, monkeypatch):
    mixer = {"type": "mla", "heads": 2, "kv_rank": 40, "nope_dim": 8, "rope_dim": 4, "v_dim": 8}
    model = hl.build(pattern="L", blocks={"L": {"mixer": mixer}}, d_model=32, vocab_size=20, seed=0).double()
    ids = torch.randint(0, 20, (2, past + 6), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(past + 6) >= past + 4).long().expand(2, -1)
    whole = model(ids, segment_ids=segments).logits
    seen = spy(monkeypatch)
    state = model(ids[:, :past], state=model.init_state(2, past + 6), segment_ids=segments[:, :past]).state
    out = model(ids[:, past:], state=state, segment_ids=segments[:, past:])
    assert seen[1] == ("attend_heads" if past == 3 else "attend_latents")
    torch.testing.assert_close(out.logits, whole[:, past:], rtol=1e-11, atol=1e-11)


def test_what_is_remembered_is_the_latent_and_one_key():
    mixer, x = make(), torch.randn(1, 5, D_MODEL).double()
    _, state = mixer(x, mixer.init_state(1, 8, dtype=torch.float64))
    assert {name: tuple(t.shape) for name, t in state.tensors().items()} == {"latent": (1, 8, 10), "key": (1, 8, 4)}
    rms = (state.latent[0, :5] / mixer.kv_norm.weight).square().mean(-1)
    torch.testing.assert_close(rms, torch.ones(5).double(), rtol=1e-3, atol=1e-3)
    assert (state.latent[0, 5:] == 0).all()
    cost = LatentAttention.cost(mixer.config, D_MODEL)
    assert cost.state(8, 8).kv == state.nbytes == 14 * 8 * 8


def test_the_cache_is_a_fraction_of_that_of_attention():
    small, large = (model_cost(hl.build(pattern=p, d_model=256, vocab_size=8).spec).state(1000).kv for p in "LA")
    assert small == 1000 * 4 * (64 + 32)
    assert large == 1000 * 4 * 2 * 256


@pytest.mark.parametrize(("pattern", "rope"), [("L2", True), ("ML", False), ("LA", True)])
def test_positions_are_left_to_a_recurrent_mixer(pattern, rope):
    stack = plan(hl.ModelSpec(pattern=pattern, d_model=32, vocab_size=8))
    assert [part.config.rope for layer in stack.layers for part in layer.mixers if part.type == "mla"] == [rope] * (
        2 if pattern == "L2" else 1
    )


def test_without_rotation_only_the_past_as_a_set_matters():
    x = torch.randn(1, 6, D_MODEL).double()
    order = torch.tensor([3, 1, 0, 4, 2, 5])
    for rope, same in ((False, True), (True, False)):
        mixer = make(rope=rope)
        assert torch.allclose(mixer(x)[0][0, -1], mixer(x[:, order])[0][0, -1], rtol=1e-10) == same


@pytest.mark.parametrize("d_model", [32, 33, 47, 64, 97, 130, 1031])
def test_defaults_are_legal_at_any_width(d_model):
    mixer = LatentAttention(LatentAttention.Config(), d_model)
    y, _ = mixer(torch.randn(1, 3, d_model))
    assert y.shape == (1, 3, d_model)
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_dim": 5}, "rope_dim: 5 is odd, and rotary positions turn pairs; use 6 or another even number"),
        ({"rope_dim": 0}, "rope_dim: 0"),
        ({"heads": 0}, "heads: 0"),
        ({"heads": True}, "heads: True"),
        ({"q_rank": -1}, "q_rank: -1"),
        ({"kv_rank": 0}, "kv_rank: 0"),
        ({"nope_dim": 1.5}, "nope_dim: 1.5"),
        ({"v_dim": 1 << 30}, "v_dim: 1073741824"),
        ({"rope": 1}, "rope: 1; it must be true or false"),
        ({"rope_theta": 0.5}, "rope_theta: 0.5"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(SpecError) as error:
        LatentAttention.Config(**config).resolve(64)
    assert message in str(error.value)


def test_it_reads_more_than_it_writes_where_a_block_says_so():
    blocks = {"L": {"mixer": {"type": "mla", "heads": 2}, "input": "concat_embeddings"}}
    model = hl.build(pattern="L2", blocks=blocks, d_model=32, vocab_size=20, seed=0)
    assert model.blocks[0].mixer.o_proj.weight.shape == (32, 64)
    assert model(torch.arange(6)[None]).logits.shape == (1, 6, 20)
    assert model_cost(model.spec).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_choice_of_positions_changes_no_shape():
    """So it may differ between places that share their weights."""
    model = hl.build(pattern="L@x L@x{rope: false}", d_model=32, vocab_size=20, seed=0)
    assert [block.mixer.config.rope for block in model.blocks] == [True, False]
    assert model(torch.arange(6)[None]).logits.isfinite().all()
