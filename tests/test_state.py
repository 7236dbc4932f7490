"""The state of a model as a value: fork, select, reset, rollback, save and load; used once."""

import pytest
import torch

import hybridlm as hl
from hybridlm.ops.backend import use
from hybridlm.state import leaves

BLOCKS = {
    "A": {"mixer": {"type": "attention", "heads": 2, "kv_heads": 1}},
    "W": {"mixer": {"type": "sliding_window", "heads": 2, "window": 4}},
}
IDS = torch.randint(0, 30, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> hl.HybridLM:
    return hl.build(pattern="A<A|W>-A@s W A@s", d_model=32, vocab_size=30, blocks=BLOCKS, seed=0).double().eval()


@pytest.fixture
def state(model) -> hl.ModelState:
    with torch.no_grad():
        return model(IDS[:, :8], state=model.init_state(3, 20)).state


@torch.no_grad()
def logits(model, state, ids=IDS[:, 8:]):
    return model(ids, state=state).logits


def test_a_call_spends_its_state_and_every_later_use_refuses(model, state):
    logits(model, state)
    calls = [state.fork, state.reset, state.detach, lambda: state.select([0]), lambda: state.rollback(0)]
    for call in [*calls, lambda: logits(model, state), lambda: state.save("unwritten")]:
        with pytest.raises(hl.StateError, match="consumed by an earlier call"):
            call()


def test_a_fork_goes_its_own_way(model, state):
    twin = state.fork()
    first = logits(model, state)
    assert torch.equal(first, logits(model, twin))


def test_states_made_inside_inference_mode_work_outside(model):
    with torch.inference_mode():
        twin = model(IDS[:, :8], state=model.init_state(3, 20)).state.fork()
    assert logits(model, twin).isfinite().all()


@pytest.mark.parametrize("rows", [[2, 0, 0, 1], torch.tensor([1]), torch.tensor([True, False, True])])
def test_select_reorders_repeats_and_drops_rows(model, state, rows):
    whole = logits(model, state.fork())
    index = torch.as_tensor(rows)
    index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
    picked = logits(model, state.select(rows), IDS[index, 8:])
    torch.testing.assert_close(picked, whole[index], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "rows", [[3], [-1], [0.5], [[0]], torch.tensor([True, False]), None, {0}, [10**30], ["a"], 0], ids=str
)
def test_rows_that_do_not_exist_are_refused(state, rows):
    with pytest.raises(hl.StateError, match="rows"):
        state.select(rows)


def test_reset_empties_the_given_rows_only(model, state):
    whole = logits(model, state.fork())
    state.reset([1])
    assert state.position.tolist() == [8, 0, 8]
    after = logits(model, state)
    torch.testing.assert_close(after[[0, 2]], whole[[0, 2]], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(after[1], model(IDS[1:2, 8:]).logits[0], atol=1e-12, rtol=1e-12)


def test_rollback_is_exact_where_every_layer_can_and_refused_elsewhere(state):
    model = hl.build(pattern="A2", d_model=32, vocab_size=30, blocks=BLOCKS, seed=0).double()
    with torch.no_grad():
        able = model(IDS[:, :8], state=model.init_state(3, 20)).state.rollback(5)
        torch.testing.assert_close(logits(model, able, IDS[:, 3:]), model(IDS).logits[:, 3:], atol=1e-12, rtol=1e-12)
    before = state.position.clone()
    with pytest.raises(hl.UnsupportedError, match="cannot forget 2 tokens"):
        state.rollback(2)
    assert torch.equal(state.position, before)


@pytest.mark.parametrize("count", [9, -1, True, 1.0])
def test_rollback_of_what_is_not_there(state, count):
    with pytest.raises(hl.StateError, match="rollback"):
        state.rollback(count)


def test_saved_and_loaded_it_is_the_same_bit_for_bit(model, state, tmp_path):
    state.save(tmp_path / "state")
    loaded = hl.load_state(tmp_path / "state")
    assert (loaded.max_length, loaded.fingerprint, loaded.nbytes) == (20, state.fingerprint, state.nbytes)
    assert torch.equal(logits(model, loaded), logits(model, state))


def test_any_damage_to_a_saved_state_is_noticed(state, tmp_path):
    path = tmp_path / "state"
    state.save(path)
    blob = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for bit in torch.randint(0, len(blob) * 8, (200,), generator=generator).tolist():
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(hl.StateError, match="damaged"):
            hl.load_state(path)
    for length in (0, 7, 100, len(blob) - 1):
        path.write_bytes(blob[:length])
        with pytest.raises(hl.StateError):
            hl.load_state(path)
    with pytest.raises(hl.StateError, match="no such file"):
        hl.load_state(tmp_path / "missing")


def test_nothing_that_is_wrong_with_a_call_costs_the_state(model, state):
    other = hl.build(pattern="A", d_model=32, vocab_size=30, blocks=BLOCKS)
    wrong = {
        "full": lambda: model(IDS.repeat(1, 2), state=state),
        "rows": lambda: model(IDS[:2], state=state),
        "token id": lambda: model(IDS + 30, state=state),
        "dtype": lambda: model(IDS.double(), state=state),
        "shape": lambda: model(IDS[:, :0], state=state),
        "valid": lambda: model(IDS, state=state, valid=IDS),
        "segment_ids": lambda: model(IDS, state=state, segment_ids=IDS[:, :3]),
        "another model": lambda: other(IDS, state=state),
    }
    for word, call in wrong.items():
        with pytest.raises(ValueError, match=word):
            call()
    assert logits(model, state).isfinite().all()


def test_gradients_flow_through_a_state_and_stop_where_it_is_detached(model):
    first = model(IDS[:, :6], state=model.init_state(3, 12))
    model(IDS[:, 6:], state=first.state, targets=IDS[:, 6:]).loss.backward()
    through = model.blocks[0].mixer.k_proj.weight.grad.clone()
    model.zero_grad()
    cut = model(IDS[:, :6], state=model.init_state(3, 12)).state.detach()
    model(IDS[:, 6:], state=cut, targets=IDS[:, 6:]).loss.backward()
    assert not torch.allclose(through, model.blocks[0].mixer.k_proj.weight.grad)
    whole = model(IDS).logits[:, 6:]
    loss = torch.nn.functional.cross_entropy(whole.flatten(0, 1), IDS[:, 6:].flatten())
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(model.blocks[0].mixer.k_proj.weight.grad, through, atol=1e-10, rtol=1e-10)


def test_memory_is_taken_over_when_gradients_are_off(model):
    state = model.init_state(3, 20)
    address = state.layers[0].k.data_ptr()
    with torch.no_grad():
        state = model(IDS[:, :4], state=state).state
    assert state.layers[0].k.data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_a_state_of_no_floating_point_dtype_is_refused(model, dtype):
    with pytest.raises(hl.StateError, match="dtype"):
        model.init_state(2, 4, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_ids_of_every_integer_dtype_are_read(model, dtype):
    assert torch.equal(model(IDS.to(dtype)).logits, model(IDS).logits)


def test_no_rows_are_a_choice_too(state):
    assert state.reset([]).position.tolist() == [8, 8, 8]
    assert state.select([]).batch == 0


@pytest.mark.parametrize("sizes", [(0, 4), (2, 0), (True, 4), (2, 4.0), (2, 10**14)])
def test_impossible_sizes_are_refused_before_anything_is_allocated(model, sizes):
    with pytest.raises(hl.StateError):
        model.init_state(*sizes)


def test_a_state_goes_from_any_mode_to_any_other(model, tmp_path):
    expected = model(IDS).logits[:, 8:]
    with torch.inference_mode():
        state = model(IDS[:, :2], state=model.init_state(3, 12)).state
        state.save(tmp_path / "state")
        state = hl.load_state(tmp_path / "state")
    with torch.no_grad():
        state = model(IDS[:, 2:4], state=state).state
    state = model(IDS[:, 4:6], state=state).state
    with torch.inference_mode():
        state = model(IDS[:, 6:8], state=state).state
    with torch.no_grad():
        torch.testing.assert_close(model(IDS[:, 8:10], state=state.fork()).logits, expected[:, :2])
    torch.testing.assert_close(logits(model, state), expected.detach())


def test_a_document_that_began_over_another_cannot_be_forgotten_whole():
    model = hl.build(pattern="A2", d_model=32, vocab_size=30, blocks=BLOCKS, seed=0).double()
    ids = torch.tensor([[5] * 6 + [9] * 2])
    with torch.no_grad():
        state = model(IDS[:1, :8], state=model.init_state(1, 20), segment_ids=ids).state
        with pytest.raises(hl.StateError, match="began over another one"):
            state.rollback(2)
        again = model(IDS[:1, 7:8], state=state.rollback(1), segment_ids=ids[:, 7:]).logits
        torch.testing.assert_close(again, model(IDS[:1, 6:8]).logits[:, 1:], atol=1e-12, rtol=1e-12)
        first = model(IDS[:1, :8], state=model.init_state(1, 20), segment_ids=ids * 0 + 5).state
        assert first.rollback(8).position.tolist() == [0]


def test_a_fork_under_no_grad_or_inference_mode_holds_no_graph(model):
    state = model(IDS[:, :4], state=model.init_state(3, 12)).state
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            twin = state.fork()
        assert all(not tensor.requires_grad for leaf in leaves(twin.layers) for tensor in leaf.tensors().values())


def test_a_graph_keeps_the_memory_that_it_needs():
    """Only queries learn, so the cache needs no gradient itself; the backward pass reads it all the same."""
    model = hl.build(pattern="A", d_model=32, vocab_size=30, blocks=BLOCKS, seed=0).requires_grad_(False)
    model.blocks[0].mixer.q_proj.weight.requires_grad_(True)
    state = model(IDS[:, :2], state=model.init_state(3, 12)).state
    out = model(IDS[:, 2:4], state=state)
    with torch.no_grad():
        model(IDS[:, 4:6], state=out.state)
    out.logits.sum().backward()


@torch.no_grad()
def test_an_eager_call_goes_on_where_a_compiled_one_stopped(model, monkeypatch):
    """While compiling nothing can be counted on the host; the next eager call asks the device."""
    whole = model(IDS).logits[:, 8:]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    state = model(IDS[:, :8], state=model.init_state(3, 12)).state
    monkeypatch.undo()
    torch.testing.assert_close(logits(model, state), whole, atol=1e-10, rtol=1e-10)


def test_per_sample_gradients_by_vmap():
    model = hl.build(pattern="MmSAW", d_model=32, vocab_size=30, seed=0).double()
    parameters = dict(model.named_parameters())

    def loss(parameters, ids):
        return torch.func.functional_call(model, parameters, (ids[None],), {"targets": ids[None]}).loss

    with use("reference"):
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, IDS)
    mean = {name: gradient.mean(0) for name, gradient in gradients.items()}
    model(IDS, targets=IDS).loss.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(mean[name], parameter.grad, atol=1e-9, rtol=1e-9)


def test_an_emptied_state_depends_on_nothing(model):
    state = model(IDS[:, :4], state=model.init_state(3, 12))
    state.logits.sum().backward()
    again = model(IDS[:, :4], state=state.state.reset())
    again.logits.sum().backward()


@pytest.mark.parametrize("pattern", ["A", "W", "M", "m"])
def test_packed_and_padded_rows_under_vmap(pattern):
    model = hl.build(pattern=pattern, d_model=32, vocab_size=30, seed=0).double()
    segments, valid = IDS.sort(dim=1).values, IDS > 5
    with use("reference"):
        rows = torch.func.vmap(lambda i, s, v: model(i[None], segment_ids=s[None], valid=v[None]).logits[0])
        torch.testing.assert_close(
            rows(IDS, segments, valid), model(IDS, segment_ids=segments, valid=valid).logits, atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize(
    "where", [{"dtype": "x"}, {"dtype": 3}, {"device": "x"}, {"dtype": torch.float8_e4m3fn}], ids=str
)
def test_a_state_lives_where_models_do(model, where):
    with pytest.raises(hl.StateError, match=next(iter(where))):
        model.init_state(2, 4, **where)
