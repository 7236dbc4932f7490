"""A model as programs of torch.export: sizes that no trace has seen, no hybridlm beside them, refusals by name."""

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridlm as hl
from hybridlm.errors import ExportError, SpecError
from hybridlm.export.lower import Lowered
from hybridlm.export.program import torch_export, write_torch_export
from hybridlm.export.program.agreement import compare
from hybridlm.export.program.describe import ready
from hybridlm.export.program.flow import Advance, Prefill, Step
from hybridlm.export.program.interface import interface_of
from hybridlm.export.program.trace import foreign
from hybridlm.export.proof import Proof
from hybridlm.registry import mixers
from tests.export.program_subject import LIMIT, PIECE, Programs, beside, opened, ragged, stirred

DOCS = Path(__file__).resolve().parents[2] / "docs/export.md"
HYBRID = "[mamba2][attention]"
WITHOUT = "import sys; sys.modules.update({name: None for name in ('hybridlm', 'einops', 'jaxtyping')})\n"


@pytest.fixture(scope="module")
def hybrid() -> hl.HybridLM:
    return stirred(HYBRID, mlp="none")


@pytest.fixture(scope="module")
def folder(hybrid, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("programs") / "out"
    lowered = write_torch_export(hybrid, folder, piece=PIECE)
    assert lowered.target == "torch-export"
    assert lowered.proof.holds
    return folder


@pytest.fixture(scope="module")
def programs(folder) -> Programs:
    return opened(folder)


@pytest.fixture(scope="module")
def example(folder) -> str:
    """The code of the docs, on these programs."""
    (code,) = re.findall(r"^```python\n(import json\n.*?)^```", DOCS.read_text(), flags=re.DOTALL | re.MULTILINE)
    return code.replace('"programs/', f'"{folder}/')


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 9), (2, 8), (3, 7), (5, 50), (2, 17)])
def test_every_batch_and_length(hybrid, programs, rows, tokens):
    assert beside(hybrid, programs, torch.ones(rows, tokens, dtype=torch.bool)) <= LIMIT


@pytest.mark.parametrize("left", [True, False])
def test_padded_rows(hybrid, programs, left):
    assert beside(hybrid, programs, ragged(4, 21, left=left)) <= LIMIT


def test_a_prompt_in_several_calls(hybrid, programs):
    assert beside(hybrid, programs, torch.ones(2, 30, dtype=torch.bool), calls=3) <= LIMIT


def test_what_goes_in_is_not_changed(hybrid, programs):
    state = interface_of(hybrid).empty(2, 12)
    held = [tensor.clone() for tensor in state]
    _, *state_after = programs["step"]([torch.ones(2, 1, dtype=torch.int64), *state])
    assert all(map(torch.equal, state, held))
    assert not any(map(torch.equal, state_after, held))


def test_a_permuted_weight_is_seen(hybrid, programs):
    valid = torch.ones(2, 13, dtype=torch.bool)
    for name, parameter in hybrid.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(before.flatten().roll(1).view_as(before))
            assert beside(hybrid, programs, valid, steps=2) > 10 * LIMIT, name
            parameter.copy_(before)


def test_a_row_past_its_capacity_is_an_error(hybrid, programs):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        beside(hybrid, programs, torch.ones(1, 10, dtype=torch.bool), spare=-15)


def test_the_description_says_what_the_programs_take(hybrid, folder):
    about = json.loads((folder / "torch-export.json").read_text())
    state = hybrid.init_state(2, 12)
    sizes = {"b": 2, "t": 6, "s": 12}
    shapes = {port["name"]: [sizes.get(n, n) for n in port["shape"]] for port in about["state"]}
    assert shapes.pop("position") == [2]
    kept = {f"layers.{i}.{name}": t for i, layer in enumerate(state.layers) for name, t in layer.tensors().items()}
    assert shapes == {name: list(tensor.shape) for name, tensor in kept.items()}
    assert all(not tensor.any() and port["initial"] == 0 for port in about["state"] for tensor in kept.values())
    for name, program in about["programs"].items():
        module = torch.export.load(folder / program["file"])
        said = [(f"torch.{port['dtype']}", len(port["shape"])) for port in program["inputs"]]
        taken = [n.meta["val"] for n in module.graph.nodes if n.name in module.graph_signature.user_inputs]
        assert said == [(str(tensor.dtype), tensor.ndim) for tensor in taken], name
        given = [port["name"].removeprefix("next.") for port in program["outputs"]]
        assert given == ["logits", *(port["name"] for port in about["state"])]
    assert about["verified"]["errors"].keys() == {"prefill", "step", "padded"}


def written(model: hl.HybridLM, new: int) -> list[list[int]]:
    """What the model itself writes after the prompts of the docs."""
    prompts = [torch.tensor([5, 17, 4, 11, 2]), torch.tensor([8, 30, 6])]
    return [hl.generate(model, prompt[None], max_new_tokens=new)[0, len(prompt) :].tolist() for prompt in prompts]


def test_the_example_of_the_docs_writes_what_the_model_writes(hybrid, example):
    names: dict[str, Any] = {}
    exec(compile(example, DOCS, "exec"), names)
    found = torch.cat(names["written"], dim=1).tolist()
    assert found == written(hybrid, len(found[0]))


@pytest.mark.deep
def test_it_does_so_in_a_process_that_has_torch_alone(hybrid, example):
    script = WITHOUT + example + "\nprint(torch.cat(written, dim=1).tolist())"
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == written(hybrid, len(json.loads(done.stdout)[0]))


@pytest.mark.deep
def test_the_model_is_left_as_it_was(tmp_path):
    """Also where its weights are of half precision and it stands in training mode; the programs are in float32."""
    model = stirred("[short_conv]", dropout=0.5).bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "before.txt").write_text("x")

    def more(staged: Path, lowered: Lowered) -> None:
        (staged / "more.txt").write_text(lowered.target)

    write_torch_export(model, tmp_path, piece=4, replaces=["before.txt"], beside=more)
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "more.txt", "prefill.pt2", "step.pt2", "torch-export.json",
    ]  # fmt: skip
    assert beside(model.float().eval(), opened(tmp_path), torch.ones(2, 9, dtype=torch.bool)) <= LIMIT


# ------------------------------------------------------------------------------------------------------------- refusals
def refused(model, out: Path, match: str, error: type[Exception] = ExportError, **how) -> None:
    with pytest.raises(error, match=match):
        write_torch_export(model, out, **how)
    assert not out.exists()


def test_heads_that_ask_for_a_whole_row_are_refused(tmp_path):
    mean = {"type": "classify", "classes": 3, "pool": "mean"}
    refused(stirred("[short_conv]", head=mean), tmp_path / "out", "pool: mean")
    recover = {"type": "recover", "classes": 5}
    refused(stirred("[short_conv]", head=recover), tmp_path / "out", "recover")


def test_what_is_no_model_is_refused(tmp_path):
    refused(torch.nn.Linear(2, 2), tmp_path / "out", "Linear is no HybridLM")
    refused(hl.build(pattern="M", d_model=32, vocab_size=8, device="meta"), tmp_path / "out", "no weights yet")
    refused(stirred("[short_conv]"), tmp_path / "out", "piece", SpecError, piece=1)


@pytest.mark.deep
def test_a_program_that_is_not_the_model_leaves_nothing_behind(hybrid, folder, tmp_path, monkeypatch):
    """The programs of another one, say."""
    traced = {name: torch.export.load(folder / f"{name}.pt2") for name in ("prefill", "step")}
    monkeypatch.setattr(torch_export, "FORM", replace(torch_export.FORM, trace=lambda *_: traced))
    other = copy.deepcopy(hybrid)
    with torch.no_grad():
        other.embed.weight[5:] += 0.01
    refused(other, tmp_path / "out", "what was written is not the model")


def test_a_proof_that_fails_leaves_nothing_behind(hybrid, tmp_path, monkeypatch):
    wrong = Proof({"prefill": 1e-7, "step": 2e-5}, 29, LIMIT)
    monkeypatch.setattr(torch_export, "FORM", replace(torch_export.FORM, trace=lambda *_: {}))
    monkeypatch.setattr("hybridlm.export.program.write.compare", lambda *_: wrong)
    refused(hybrid, tmp_path / "out", r"step 2.0e-05 of the logits' RMS, and 1e-05 is\s+allowed")


def test_a_model_that_rounds_more_is_allowed_more():
    """Attention so sharp that float32 itself is far from float64; a permuted weight is further still."""
    model = ready(stirred("[attention][attention]", mlp="none"), PIECE)
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.q_proj.weight *= 300

    def proof(of: hl.HybridLM) -> Proof:
        modules = {"prefill": Prefill(Advance(of), PIECE), "step": Step(Advance(of))}
        runs = {name: lambda inputs, module=module: list(module(*inputs)) for name, module in modules.items()}
        return compare(model, interface_of(model), runs)

    def exactly(inputs: list[torch.Tensor], of: torch.nn.Module) -> list[torch.Tensor]:
        return list(of(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)))

    double = copy.deepcopy(model).double()
    modules = {"prefill": Prefill(Advance(double), PIECE), "step": Step(Advance(double))}
    exact = {name: partial(exactly, of=module) for name, module in modules.items()}
    found = compare(model, interface_of(model), exact)
    assert max(found.errors.values()) < 1e-9  # both are measured against float64, and not the one against the other
    assert LIMIT < found.limit < 1e-3
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded.embed.weight *= 1 + 1e-7 * torch.randn_like(rounded.embed.weight)
    assert proof(rounded).limit > LIMIT
    assert proof(rounded).holds
    with torch.no_grad():
        rounded.blocks[0].mixer.v_proj.weight.copy_(model.blocks[0].mixer.v_proj.weight.roll(1, 0))
    assert not proof(rounded).holds


def test_a_model_whose_answers_are_no_numbers_is_refused(hybrid, programs):
    other = copy.deepcopy(hybrid)
    with torch.no_grad():
        other.final_norm.weight[0] = torch.inf
    with pytest.raises(ExportError, match="not finite"):
        compare(other, interface_of(other), programs)


def test_an_op_that_torch_does_not_have_is_found(hybrid):
    """Even one of ours, which is there while the programs are written."""

    class Foreign(torch.nn.Module):
        def forward(self, x):
            weights = [x[0].new_ones(4 * 2, 2)] * 2 + [x[0, 0].new_ones(4 * 2).flatten()[:8]] * 2
            return torch.ops.hybridlm.recurrent("lstm", [x, *weights, x[:, 0], x[:, 0]], None, None)

    program = torch.export.export(Foreign(), (torch.ones(1, 3, 2),), strict=False)
    assert foreign(program) == ["hybridlm.recurrent.default"]


# ----------------------------------------------------------------------------------------------------- the whole matrix
SEQUENCES = {
    "MA": "[mamba2][attention]",
    "MWA": "[mamba2][sliding_window][attention]",
    "mA": "[mamba][attention]",
    "S4 and A": "[s4][attention]",
    "deltanet and A": "[gated_deltanet][attention]",
    "side by side": "<[mamba2]|[attention]>[s5]",
    "an MLP alone": "[mamba]-[mla]",
    "shared": "[attention]@x [mamba2][attention]@x",
}


@pytest.mark.deep
@pytest.mark.parametrize("pattern", [*SEQUENCES.values(), *(f"[{name}]" for name in mixers.names())])
def test_every_mixer_and_their_hybrids(pattern, tmp_path):
    model = stirred(pattern, seed=1)
    write_torch_export(model, tmp_path, piece=PIECE)
    programs = opened(tmp_path)
    for rows, tokens in ((1, 1), (2, 5), (3, 16), (1, 75)):
        assert beside(model, programs, torch.ones(rows, tokens, dtype=torch.bool)) <= LIMIT
    assert beside(model, programs, ragged(4, 21, left=True)) <= LIMIT
    assert beside(model, programs, ragged(3, 18, left=False)) <= LIMIT


@pytest.mark.deep
@pytest.mark.parametrize(
    "spec",
    [
        {"mlp": {"type": "moe", "width": 16, "experts": 4, "top_k": 2}},
        {"tie_embeddings": True, "norm": "layernorm"},
        {"norms": "sandwich", "residual_in_fp32": True},
        {"embed": {"type": "linear", "channels": 3}, "head": {"type": "regress", "outputs": 2, "pool": "none"}},
        {"head": {"type": "classify", "classes": 5, "pool": "last"}},
    ],
    ids=lambda spec: " ".join(spec),
)
def test_what_stands_around_the_mixers(spec, tmp_path):
    model = stirred("[mamba2][attention]", **spec)
    write_torch_export(model, tmp_path, piece=PIECE)
    programs = opened(tmp_path)
    assert beside(model, programs, torch.ones(5, 19, dtype=torch.bool)) <= LIMIT
    assert beside(model, programs, ragged(4, 21, left=True)) <= LIMIT
