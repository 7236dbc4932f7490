"""An export as remote code is the model: its logits, its cache, its gradients, what generate makes of it, its files."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from remote_models import SIZES, WORDS, Pair, built, exported, opened, tokens

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError
from hybridlm.export.proof import LIMIT, prove, worst
from hybridlm.export.remote.write import MODELING, modeling_text, write_remote
from hybridlm.registry import mixers
from hybridlm.testing.patterns import alphabet, specs


# ----------------------------------------------------------------------------------------------------------- the logits
def test_prefill_steps_and_padded_batches_give_the_logits(pair):
    assert max(prove(pair.ours, pair.folder, trust_remote_code=True).errors.values()) <= LIMIT


@pytest.mark.deep
@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_alone(name, tmp_path):
    model = built({**SIZES, "pattern": f"[{name}]2", "blocks": alphabet([name])})
    write_remote(model, tmp_path)
    assert max(prove(model, tmp_path, trust_remote_code=True).errors.values()) <= LIMIT


@pytest.mark.deep
@hypothesis.settings(max_examples=20)
@hypothesis.given(specs())
def test_random_stacks(spec):
    """Steps against our own steps: what a stack makes of roundings is not at issue here."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(spec, Path(folder))
        ids, valid = torch.randint(40, (2, 14)), torch.ones(2, 14, dtype=torch.bool)
        valid[0, :5] = False
        state, cache = pair.ours.init_state(2, 14), None
        for start, end in ((0, 9), (9, 10), (10, 14)):
            with torch.no_grad():
                wanted = pair.ours(ids[:, start:end], state, valid=valid[:, start:end])
                found = pair.theirs(ids[:, start:end], valid[:, :end].long(), past_key_values=cache)
            state, cache, real = wanted.state, found.past_key_values, valid[:, start:end]
            assert worst(found.logits[real], wanted.logits[real]) <= LIMIT


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.deep) for part in range(1, 5))])
def test_a_tensor_out_of_order_shows(some, part):
    ids = tokens(2, 24)
    with torch.no_grad():
        wanted = some.ours(ids).logits
        assert worst(some.theirs(ids, use_cache=False).logits, wanted) <= LIMIT
        for name, tensor in sorted(some.theirs.state_dict().items())[part::5]:
            before = tensor.clone()
            tensor.copy_(before.flatten().roll(1).view_as(before))
            assert tensor.numel() == 1 or worst(some.theirs(ids, use_cache=False).logits, wanted) > LIMIT, name
            tensor.copy_(before)


def test_pads_may_stand_anywhere_and_calls_may_have_any_length(pair):
    ids, valid = tokens(3, 21), torch.rand(3, 21, generator=torch.Generator().manual_seed(1)) < 0.7
    valid[:, 5], valid[1] = True, True
    mask, cache, found = valid.long(), None, []
    with torch.no_grad():
        for start, end in ((0, 6), (6, 7), (7, 15), (15, 21)):
            out = pair.theirs(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
            cache = out.past_key_values
            found.append(out.logits)
        wanted = pair.ours(ids, valid=valid).logits
    assert cache.get_seq_length() == 21
    assert worst(torch.cat(found, dim=1)[valid], wanted[valid]) <= LIMIT


@pytest.mark.deep
def test_it_compiles(some):
    ids = tokens(2, 9)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(some.theirs, backend="eager", fullgraph=True)(ids, use_cache=False).logits
        assert worst(found, some.ours(ids).logits) <= LIMIT


def test_only_the_logits_that_are_asked_for(forms):
    ids = tokens(2, 9)
    with torch.no_grad():
        all_of_them = forms.theirs(ids).logits
        assert torch.equal(forms.theirs(ids, logits_to_keep=2).logits, all_of_them[:, -2:])
        assert torch.equal(forms.theirs(ids, logits_to_keep=torch.tensor([3, 0])).logits, all_of_them[:, [3, 0]])


def test_embeddings_may_come_from_outside(some):
    ids, valid = tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    valid[1, :4] = 0
    with torch.no_grad():
        embedded = some.theirs.get_input_embeddings()(ids)
        found = some.theirs(inputs_embeds=embedded, attention_mask=valid).logits
        assert torch.equal(found, some.theirs(ids, attention_mask=valid).logits)


def test_hidden_states_go_into_each_block_and_out_of_the_last_norm(forms):
    with torch.no_grad():
        out = forms.theirs(tokens(2, 9), output_hidden_states=True)
    assert len(out.hidden_states) == len(forms.theirs.blocks) + 1
    assert torch.equal(forms.theirs.lm_head(out.hidden_states[-1]), out.logits)


def test_what_it_cannot_do_is_refused(forms):
    ids = tokens(2, 4)
    with pytest.raises(ValueError, match="output_attentions"):
        forms.theirs(ids, output_attentions=True)
    with pytest.raises(ValueError, match="no other form"):
        forms.theirs(ids, attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="3 columns for 4 tokens"):
        forms.theirs(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="one of input_ids and inputs_embeds"):
        forms.theirs()
    with pytest.raises(TypeError, match="position_ids"):
        forms.theirs(ids, position_ids=torch.arange(4))
    with pytest.raises(ValueError, match="rows"):
        forms.theirs(ids[:1], past_key_values=forms.theirs(ids, use_cache=True).past_key_values)
    with pytest.raises(ValueError, match="no weights to begin with"):
        type(forms.theirs)(forms.theirs.config)


# ------------------------------------------------------------------------------------------------------------- training
def test_loss_and_gradients_are_those_of_the_model(pair):
    ids = tokens(3, 17)
    pair.theirs.train(), pair.ours.train()
    targets = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], dim=1)
    theirs, ours = pair.theirs(ids, labels=ids).loss, pair.ours(ids, targets=targets).loss
    torch.testing.assert_close(theirs, ours)
    found = torch.autograd.grad(theirs, list(pair.theirs.parameters()), allow_unused=True)
    found = dict(zip(dict(pair.theirs.named_parameters()), found, strict=True))
    wanted = torch.autograd.grad(ours, list(pair.ours.parameters()))
    for (name, parameter), gradient in zip(pair.ours.named_parameters(), wanted, strict=True):
        scale = gradient.square().mean().sqrt().clamp(min=1e-6 * parameter.detach().square().mean().sqrt())
        assert (found[name] - gradient).abs().max() <= 2e-4 * scale, name
    pair.theirs.eval(), pair.ours.eval()


def test_checkpointed_gradients_are_the_same(some):
    ids = tokens(2, 9)
    plain = torch.autograd.grad(some.theirs.train()(ids, labels=ids).loss, some.theirs.embed.weight)[0]
    some.theirs.gradient_checkpointing = True
    again = torch.autograd.grad(some.theirs(ids, labels=ids).loss, some.theirs.embed.weight)[0]
    some.theirs.gradient_checkpointing = False
    some.theirs.eval()
    assert torch.equal(plain, again)


def test_gradients_flow_through_the_cache(forms):
    ids = tokens(2, 9)
    first = forms.theirs(ids[:, :5], use_cache=True)
    forms.theirs(ids[:, 5:], past_key_values=first.past_key_values).logits.square().mean().backward()
    found = forms.theirs.embed.weight.grad
    assert found is not None
    assert found[ids[0, 0]].abs().max() > 0
    forms.theirs.zero_grad()


# ---------------------------------------------------------------------------------------------------------------- files
def test_saved_again_it_is_the_same(some, tmp_path):
    ids = tokens(2, 9)
    some.theirs.save_pretrained(tmp_path)
    again = opened(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, some.theirs(ids).logits)
    tied = some.ours.spec.tie_embeddings
    assert (again.lm_head.weight is again.embed.weight) == tied
    assert (tmp_path / f"{MODELING}.py").read_text() == (some.folder / f"{MODELING}.py").read_text()


def test_it_is_a_model_of_ours_too(some):
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(hl.load(some.folder)(ids).logits, some.ours(ids).logits)


def test_what_must_not_be_rounded_is_not(some):
    half = opened(some.folder, dtype=torch.bfloat16)
    precise = {name for name, tensor in some.ours.bfloat16().named_parameters() if tensor.dtype == torch.float32}
    some.ours.float().load_state_dict(hl.load(some.folder).state_dict())
    assert {name for name, tensor in half.named_parameters() if tensor.dtype == torch.float32} == precise
    with torch.no_grad():
        logits = half(tokens(2, 9)).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_a_vocabulary_may_grow(forms):
    model = copy.deepcopy(forms.theirs)
    model.resize_token_embeddings(WORDS + 3)
    with torch.no_grad():
        logits = model(tokens(2, 9)).logits
        assert torch.equal(logits[..., :WORDS], forms.theirs(tokens(2, 9)).logits)
    assert logits.shape[-1] == WORDS + 3


def test_the_file_needs_torch_and_transformers_alone(some):
    tree = ast.parse((some.folder / f"{MODELING}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    foreign = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"torch", "transformers"}


def test_the_file_is_clean_and_says_what_it_is_of(some):
    path = some.folder / f"{MODELING}.py"
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--select", "E9,F", str(path)]
    found = subprocess.run(check, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    text = path.read_text()
    assert text.startswith(f'"""A language model: {len(some.ours.blocks)} layers')
    assert hl.__version__ in text[:400]
    assert "jaxtyping" not in text
    assert "backend=" not in text


def test_the_config_says_where_the_code_is(forms):
    config = json.loads((forms.folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_hybridlm.HybridLMForCausalLM"
    assert config["architectures"] == ["HybridLMForCausalLM"]
    assert config["tie_word_embeddings"]
    assert hl.ModelSpec.from_dict(config["spec"]) == forms.ours.spec
    assert len(config["layers"]) == config["num_hidden_layers"] == len(forms.ours.blocks)


def test_the_same_model_gives_the_same_text(forms):
    assert modeling_text(plan(forms.ours.spec)) == (forms.folder / f"{MODELING}.py").read_text()


def test_two_models_in_folders_of_one_name_are_told_apart(tmp_path):
    """transformers takes the class that it registered for a config class first."""
    models = {place: built({**SIZES, "pattern": place}) for place in ("A", "C")}
    found = {place: exported(model, tmp_path / place / "model") for place, model in models.items()}
    for place, model in models.items():
        with torch.no_grad():
            assert worst(found[place](tokens(2, 9)).logits, model(tokens(2, 9)).logits) <= LIMIT


@pytest.mark.deep
def test_the_same_model_gives_the_same_text_in_any_process(forms):
    code = (
        "import sys, hybridlm as hl; from hybridlm.compose.plan import plan;"
        "from hybridlm.export.remote.write import modeling_text;"
        "print(modeling_text(plan(hl.load(sys.argv[1]).spec)), end='')"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, str(forms.folder)],
            capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert texts == {(forms.folder / f"{MODELING}.py").read_text()}


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ({"head": {"type": "classify", "classes": 3, "pool": "mean"}}, "head: classify"),
        ({"embed": {"type": "linear", "channels": 2}}, "embed: linear"),
    ],
)
def test_what_is_no_language_model_is_refused(ends, words, tmp_path):
    spec = {**SIZES, "pattern": "M", **ends}
    with pytest.raises(ExportError, match=words):
        write_remote(hl.build(spec), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_registered_with_torch(pair):
    """An op of our name would take the place of ours in a process that has both. One of the pairs has every mixer."""
    text = (pair.folder / "modeling_hybridlm.py").read_text()
    assert "torch.library" not in text
    assert "torch.ops" not in text
