"""What goes into a model and what comes out: tokens or signals, the next token, classes or numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.compose.describe import describe
from hybridlm.compose.plan import plan
from hybridlm.ops.backend import use
from hybridlm.testing import check_model, require
from hybridlm.testing.patterns import alphabet

C, CLASSES, OUTPUTS = 3, 5, 2
LINEAR = {"type": "linear", "channels": C}
HEADS = {"classify": {"type": "classify", "classes": CLASSES}, "regress": {"type": "regress", "outputs": OUTPUTS}}
NAN = float("nan")


def make(head: str = "classify", pool: str = "mean", *, pattern: str = "S A", **changes) -> hl.HybridLM:
    given = {"pattern": pattern, "d_model": 32, "embed": LINEAR, "head": {**HEADS[head], "pool": pool}, "seed": 0}
    return hl.build(**(given | changes)).eval()


def signal(rows: int = 3, t: int = 11) -> torch.Tensor:
    return torch.randn(rows, t, C, generator=torch.Generator().manual_seed(5))


def mask(t: int, *lengths: int, left: bool = True) -> torch.Tensor:
    steps = torch.arange(t)
    return torch.stack([steps >= t - n if left else steps < n for n in lengths])


# ---------------------------------------------------------------------------------------------------------------- spec
def test_a_text_model_says_nothing_of_its_ends():
    """Fingerprints that are written into saved states stay what they were."""
    spec = hl.ModelSpec(d_model=64, vocab_size=50, pattern="A")
    assert spec.fingerprint == "0c271e30f1194db1"  # as before there were ends to choose
    said = hl.ModelSpec(d_model=64, vocab_size=50, pattern="A", embed={"type": "tokens"}, head="lm")
    assert said == spec
    assert said.fingerprint == spec.fingerprint
    assert {"embed", "head"}.isdisjoint(plan(said).spec.to_dict())
    model = hl.build(spec, seed=0)
    assert {"embed.weight", "lm_head.weight"} <= set(model.state_dict())
    assert model.head is None


def test_ends_are_written_out_and_read_back(tmp_path):
    model = make("regress", "last")
    assert model.spec.to_dict()["head"] == {"type": "regress", "outputs": OUTPUTS, "pool": "last"}
    assert "vocab_size" not in model.spec.to_dict()
    assert hl.ModelSpec.from_dict(model.spec.to_dict()) == model.spec
    (tmp_path / "model.yaml").write_text(model.spec.to_yaml())
    assert hl.ModelSpec.read(tmp_path / "model.yaml") == model.spec
    hl.save(model, tmp_path / "saved")
    loaded = hl.load(tmp_path / "saved")
    assert torch.equal(loaded(signal()).logits, model(signal()).logits)
    changed = hl.build(tmp_path / "model.yaml", head={**HEADS["classify"], "pool": "none"})
    assert changed(signal()).logits.shape == (3, 11, CLASSES)
    assert changed.spec.fingerprint != model.spec.fingerprint


def test_defaults_of_heads():
    assert hl.build(pattern="A", d_model=32, embed=LINEAR, head=HEADS["classify"]).spec.head["pool"] == "mean"
    assert hl.build(pattern="A", d_model=32, embed=LINEAR, head=HEADS["regress"]).spec.head["pool"] == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"type": "classify", "clases": 3}}, r"head\.clases: unknown field; did you mean classes\?"),
        ({"head": {"type": "clasify"}}, r"head\.type: 'clasify'.*Did you mean 'classify'"),
        ({"head": "regres"}, r"head: 'regres'.*Did you mean 'regress'"),
        ({"head": "classify"}, r"head\.classes: missing"),
        ({"head": {"type": "classify", "classes": 1}}, r"head\.classes: 1"),
        ({"head": {"type": "classify", "classes": 3, "pool": "max"}}, r"head\.pool: 'max'"),
        ({"head": {"type": "regress", "outputs": 2.0}}, r"head\.outputs: 2\.0"),
        ({"head": 3}, "head: 3; it must be lm, classify, regress"),
        ({"head": {"classes": 3}}, "head: .*type"),
        ({"head": {"type": "lm", "classes": 3}}, r"head\.classes: unknown field"),
        ({"embed": {"type": "linear", "chanels": 3}}, r"embed\.chanels: unknown field; did you mean channels\?"),
        ({"embed": "linear"}, r"embed\.channels: missing"),
        ({"embed": {"type": "linear", "channels": True}}, r"embed\.channels: True"),
        ({"embed": None}, "embed: None"),
        ({"embed": "tokens"}, "vocab_size: missing; a model that reads tokens"),
        ({"head": "lm"}, "vocab_size: missing; a model that writes tokens"),
        ({"vocab_size": 9}, r"vocab_size: 9, but .* \(embed: linear\) .* \(head: classify\); leave it out"),
        ({"vocab_size": 9, "head": "lm", "tie_embeddings": True}, "tie_embeddings: true, but one matrix"),
        ({"vocab_size": 9, "embed": "tokens", "tie_embeddings": True}, "tie_embeddings: true, but one matrix"),
    ],
)
def test_a_mistake_at_an_end_is_named_with_its_path(changes, message):
    legal = {"pattern": "A", "d_model": 32, "embed": LINEAR, "head": HEADS["classify"]}
    hl.build(**legal)
    with pytest.raises(hl.SpecError, match=message):
        hl.build(**(legal | changes))


# ------------------------------------------------------------------------------------------------------------- answers
def test_what_is_read_is_called_ids_whatever_it_is():
    model, x = make("classify", "mean"), signal()
    assert torch.equal(model(ids=x).logits, model(x).logits)
    assert torch.equal(model.hidden(ids=x)[0], model.hidden(x)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_an_answer_is_that_of_the_valid_tokens(head, pool):
    """Pads on either side, holding anything, change nothing; each row answers as it does alone."""
    model, x = make(head, pool), signal()
    whole = model(x).logits
    assert whole.shape == (3, *([11] if pool == "none" else []), CLASSES if head == "classify" else OUTPUTS)
    for left in (True, False):
        valid = mask(11, 11, 4, 1, left=left)
        ragged = model(x.masked_fill(~valid[..., None], NAN), valid=valid).logits
        for row, real in enumerate(valid):
            alone = model(x[row : row + 1, real]).logits[0]
            torch.testing.assert_close(ragged[row, real] if pool == "none" else ragged[row], alone)


def test_pooling_is_the_mean_and_the_last():
    model, x = make("classify", "none", pattern="S"), signal()
    for pool, pick in {"mean": lambda y: y.mean(dim=1), "last": lambda y: y[:, -1]}.items():
        twin = make("classify", pool, pattern="S")
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin(x).logits, pick(model(x).logits))


def test_a_row_without_a_valid_token_answers_for_a_zero_vector_and_does_not_count():
    for head in HEADS:
        for pool in ("mean", "last"):
            model, x, valid = make(head, pool), signal(2), mask(11, 5, 0)
            out = model(x, valid=valid)
            assert torch.equal(out.logits[1], model.head.bias)
            targets = torch.tensor([1, 2]) if head == "classify" else torch.ones(2, OUTPUTS)
            both, one = model(x, valid=valid, targets=targets).loss, model(x[:1, 6:], targets=targets[:1]).loss
            torch.testing.assert_close(both, one)


@pytest.mark.parametrize("pool", ["last", "none"])
def test_answers_go_on_from_a_state(pool):
    model, x = make("regress", pool), signal()
    whole = model(x).logits
    state = model(x[:, :6], model.init_state(3, 20)).state
    rest = model(x[:, 6:], state).logits
    torch.testing.assert_close(rest, whole if pool == "last" else whole[:, 6:])


def test_packed_documents_answer_as_they_do_apart():
    model, x = make("regress", "none"), signal(1)
    packed = model(x, segment_ids=torch.tensor([[0] * 4 + [1] * 7])).logits
    torch.testing.assert_close(packed[:, :4], model(x[:, :4]).logits)
    torch.testing.assert_close(packed[:, 4:], model(x[:, 4:]).logits)


def test_what_a_pooled_head_cannot_answer_is_refused_before_the_state_changes():
    ids = torch.zeros(3, 11, dtype=torch.int64)
    for pool in ("mean", "last"):
        with pytest.raises(hl.UnsupportedError, match="pool: none"):
            make(pool=pool)(signal(), segment_ids=ids)
    model = make(pool="mean")
    state = model.init_state(3, 20)
    with pytest.raises(hl.UnsupportedError, match="pool: last"):
        model(signal(), state)
    x, after = model.hidden(signal(), state)  # the hidden vectors themselves are no secret
    assert after.position.tolist() == [11] * 3
    assert model.logits(x).shape == (3, 11, CLASSES)


def test_tokens_can_be_classified_and_signals_written_as_tokens():
    ids = torch.randint(0, 50, (2, 9))
    model = make(embed="tokens", vocab_size=50)
    assert model(ids, targets=torch.tensor([0, 4])).logits.shape == (2, CLASSES)
    model = hl.build(pattern="S", d_model=32, vocab_size=50, embed=LINEAR, head="lm", seed=0)
    assert model(signal(2, 9)).logits.shape == (2, 9, 50)
    assert model(signal(2, 9), targets=ids).logits is None


def test_signals_are_read_in_the_dtype_of_the_weights():
    model = make(pattern="S").to(torch.bfloat16)
    assert model(signal().double()).logits.dtype == torch.bfloat16
    assert make(pattern="S", residual_in_fp32=True)(signal().half()).logits.dtype == torch.float32


# -------------------------------------------------------------------------------------------------------------- losses
def test_the_loss_of_a_classifier():
    model, x, targets = make(), signal(), torch.tensor([4, -100, 0])
    out = model(x, targets=targets)
    expected = F.cross_entropy(model(x).logits.double(), targets)
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(out.loss, out.cross_entropy)
    assert out.squared_error is None
    assert torch.equal(out.logits, model(x).logits)
    assert model(x, targets=torch.full((3,), -100)).loss == 0


def test_the_loss_at_every_step_leaves_pads_out():
    model, x, valid = make(pool="none"), signal(), mask(11, 11, 4, 1)
    targets = torch.randint(0, CLASSES, (3, 11)).masked_fill(~valid, 99)  # at pads anything may stand
    targets[0, 3] = -100
    counts = valid & (targets != -100)
    expected = F.cross_entropy(model(x, valid=valid).logits[counts], targets[counts])
    torch.testing.assert_close(model(x, valid=valid, targets=targets).loss, expected)


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_the_loss_of_a_regression(pool):
    model, x, valid = make("regress", pool), signal(), mask(11, 11, 4, 1)
    answers = model(x, valid=valid).logits.double()
    targets = torch.randn(answers.shape, dtype=torch.float64)
    targets[0, ..., 1] = NAN
    counts = ~targets.isnan() & (valid[..., None] if pool == "none" else True)
    out = model(x, valid=valid, targets=targets)
    torch.testing.assert_close(out.loss, (answers - targets)[counts].square().mean(), check_dtype=False)
    assert torch.equal(out.loss, out.squared_error)
    assert out.cross_entropy is None
    nothing = model(x, valid=valid, targets=torch.full_like(targets, NAN))
    assert nothing.loss == 0
    nothing.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_loss_is_computed_in_float32_at_least():
    model = make("regress", "mean", pattern="S").to(torch.bfloat16)
    assert model(signal(), targets=torch.zeros(3, OUTPUTS)).loss.dtype == torch.float32
    assert (
        make("regress", "mean", pattern="S").double()(signal(), targets=torch.zeros(3, 2)).loss.dtype == torch.float64
    )


def test_a_long_mean_does_not_overflow_in_float16():
    from hybridlm.compose.readout import pooled

    x = torch.full((1, 5000, 2), 100.0, dtype=torch.float16)
    mean, _ = pooled(x, torch.ones(1, 5000, dtype=torch.bool), "mean")
    assert torch.equal(mean, x[:, 0])


# ---------------------------------------------------------------------------------------------------------------- door
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 9, C, dtype=torch.int64), "inputs: dtype torch.int64"),
        (torch.zeros(2, 9, C, dtype=torch.complex64), "inputs: dtype torch.complex64"),
        (torch.zeros(2, 9), r"inputs: shape \(2, 9\)"),
        (torch.zeros(2, 9, C + 1), r"must be \(batch, time, 3\)"),
        (torch.zeros(2, 0, C), "inputs: shape"),
        (torch.full((2, 9, C), NAN), "inputs: nan"),
        (torch.full((2, 9, C), float("inf")), "inputs: inf"),
        ([[1.0]], "inputs: a list"),
    ],
)
def test_wrong_signals_are_refused_before_the_state_changes(inputs, message):
    model = make("regress", "last")
    state = model.init_state(2, 20)
    with pytest.raises(hl.SpecError, match=message):
        model(inputs, state)
    assert model(signal(2), state).state.position.tolist() == [11, 11]


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 1e5), (torch.float32, 1e300)])
def test_a_number_that_the_weights_cannot_hold_is_refused(dtype, number):
    model, x = make("regress", "last").to(dtype), signal(2).double()
    state = model.init_state(2, 20)
    x[0, 3, 1] = number
    with pytest.raises(hl.SpecError, match=rf"inputs: 1.*finite in {dtype}, pads apart"):
        model(x, state)
    x[0, 3, 1] = 1.0
    assert model(x, state).logits.isfinite().all()


@pytest.mark.parametrize(
    ("head", "pool", "targets", "message"),
    [
        (
            "classify",
            "mean",
            torch.zeros(3, 11, dtype=torch.int64),
            r"targets: shape \(3, 11\).*\(batch\), here \(3,\)",
        ),
        ("classify", "none", torch.zeros(3, dtype=torch.int64), r"targets: shape \(3,\).*\(batch, time\)"),
        ("classify", "mean", torch.zeros(3), "targets: dtype torch.float32"),
        ("classify", "mean", torch.tensor([0, 5, 1]), "targets: 5 is no class; there are 0 to 4"),
        ("classify", "mean", torch.tensor([0, -1, 1]), "targets: -1 is no class"),
        ("classify", "mean", torch.tensor([0, 156, 1], dtype=torch.uint8), "targets: 156 is no class"),  # -100 + 256
        ("classify", "mean", [0, 1, 2], "targets: a list"),
        ("regress", "mean", torch.zeros(3), r"targets: shape \(3,\).*\(batch, 2\)"),
        ("regress", "none", torch.zeros(3, 2), r"\(batch, time, 2\), here \(3, 11, 2\)"),
        ("regress", "mean", torch.zeros(3, 2, dtype=torch.int64), "targets: dtype torch.int64"),
        ("regress", "mean", torch.full((3, 2), float("inf")), "targets: inf"),
    ],
)
def test_wrong_targets_are_refused(head, pool, targets, message):
    with pytest.raises(hl.SpecError, match=message):
        make(head, pool)(signal(), targets=targets)


def test_only_a_language_model_writes(tmp_path):
    from hybridlm.infer.command import generate_command

    with pytest.raises(hl.SpecError, match="embed: linear, head: classify: this model cannot write"):
        hl.generate(make(), [[1, 2]])
    hl.save(make(embed="tokens", vocab_size=256), tmp_path)
    with pytest.raises(hl.SpecError, match="embed: tokens, head: classify"):
        generate_command(str(tmp_path), prompt=["a"])


# ----------------------------------------------------------------------------------------------------------- the books
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_ends_cost_what_they_are(head, pool):
    """Apart from the stack's own: parameters = entries, matrix FLOPs as PyTorch counts them, both exactly."""
    model = make(head, pool, pattern="A")
    cost = model_cost(model.spec)
    assert cost.embedding.parameters == sum(p.numel() for p in model.embed.parameters())
    assert cost.head.parameters == sum(p.numel() for p in model.head.parameters())
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, use("reference"):
        model(signal(1, 40))
    counted = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    assert cost.embedding.forward(40, 0).matmul == counted["HybridLM.embed"]
    assert cost.head.forward(40, 0).matmul == counted["HybridLM.head"]
    assert cost.forward(40).matmul == counted["Global"]


def test_describe_shows_the_ends(capsys):
    from hybridlm.cli.describe import _print_tables
    from hybridlm.export.choice import exportable

    cost = model_cost(make().spec)
    said = describe(cost, [64])
    assert (said["embed"], said["head"]["classes"], said["vocab_size"]) == (LINEAR, CLASSES, None)
    assert said["at"]["64"]["training_flops"]["matmul"] > said["embed_at"]["64"]["training_flops"]["matmul"] > 0
    _print_tables(said | {"export": exportable(cost.stack)})
    shown = capsys.readouterr().out
    assert "2 layers, d_model 32, 3 channels in, 5 classes out (pool mean)" in shown
    assert describe(model_cost(hl.ModelSpec(d_model=64, vocab_size=50, pattern="A")), [64])["head"] == "lm"


# ---------------------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("head", ["regress", pytest.param("classify", marks=pytest.mark.deep)])
def test_a_model_of_signals_keeps_the_laws(head):
    pool = "none" if head == "regress" else "mean"
    names = ["s4d", "attention", "mamba2"]
    spec = make(head, pool, pattern="[s4d] [attention]@x <[s4d]|[mamba2]> [attention]@x", blocks=alphabet(names)).spec
    require(check_model(spec))
