"""Tokenizer files beside exported weights: the ids are those that the model was trained on."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

import hybridlm as hl
from hybridlm.errors import ExportError
from hybridlm.export.tokenizer import CONFIG, GENERATION, TEXT_FILES, Text, byte_letters, text_of, write_tokenizer
from hybridlm.text import END_OF_TEXT, TOKENIZER, ByteCodec, FileCodec
from hybridlm.train.tokenize import train_tokenizer

TRICKY = [
    "",
    " a  b .\n\t c n't don't ,x",
    "".join(map(chr, range(256))),
    "Ā\x00Ġ <|endoftext|> <s></s> [INST] <unk>",
    "日本語🎉\u200d é e\u0301 ﬁ",
]
FAMILIES = ["hybridlm", "llama", "mistral", "mamba", "mamba2", "granitemoehybrid", "nemotron_h", "falcon_h1", "jamba"]


def spec(vocab_size: int | None = 256, **changes) -> hl.ModelSpec:
    return hl.build(pattern="A", d_model=32, device="meta", vocab_size=vocab_size, **changes).spec


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tokenizer.json of the kind that `hybridlm tokenize` writes."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("the cat sat on the mat, and the dog ate the hat. " * 50, encoding="utf-8")
    train_tokenizer(str(folder / "text.txt"), vocab_size=300, output=folder / TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    assert write_tokenizer(folder, Text()) == [GENERATION, TOKENIZER, CONFIG]
    return folder


def auto(folder):
    """What transformers reads, offline."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


# ------------------------------------------------------------------------------------------------------------ of bytes
def test_every_byte_has_the_letter_that_the_library_gives_it():
    """Latin-1 reaches every letter of two bytes; each letter's own bytes say which they are."""
    assert sorted(byte_letters()) == sorted(ByteLevel.alphabet())
    pre = ByteLevel(add_prefix_space=False, use_regex=False)
    for letter in map(chr, [*range(0x800), 0x10FFFF, 0xFFFD, 0x20000, 0x40000, 0x80000, 0xC0000]):
        assert pre.pre_tokenize_str(letter)[0][0] == "".join(byte_letters()[byte] for byte in letter.encode())


@given(st.text())
def test_ids_are_bytes_and_come_back(of_bytes, text):
    tokenizer = Tokenizer.from_file(str(of_bytes / TOKENIZER))
    assert tokenizer.encode(text).ids == ByteCodec().encode(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(st.lists(st.integers(0, 300), max_size=12))
def test_any_ids_are_decoded_as_here(of_bytes, ids):
    """Broken characters are U+FFFD, ids beyond the bytes nothing."""
    tokenizer = Tokenizer.from_file(str(of_bytes / TOKENIZER))
    assert tokenizer.decode(ids) == bytes(number for number in ids if number < 256).decode("utf-8", "replace")
    assert FileCodec(of_bytes / TOKENIZER).vocab_size == 256


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_transformers_reads_bytes_whatever_the_family(of_bytes, tmp_path, family):
    for path in of_bytes.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if family is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer = auto(tmp_path)
    assert len(tokenizer) == 256
    for text in TRICKY:
        assert tokenizer(text)["input_ids"] == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
        assert tokenizer.decode(list(text.encode()), skip_special_tokens=True) == text


# ------------------------------------------------------------------------------------------------------- of a run's own
@pytest.mark.parametrize("family", [None, "llama", "mamba2"])
def test_a_runs_own_tokenizer_is_copied_and_read_as_here(trained, tmp_path, family):
    assert write_tokenizer(tmp_path, text_of(trained, spec(400))) == [GENERATION, TOKENIZER, CONFIG]
    assert (tmp_path / TOKENIZER).read_bytes() == (trained / TOKENIZER).read_bytes()
    if family is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer, codec = auto(tmp_path), FileCodec(trained / TOKENIZER)
    for text in [*TRICKY, "the cat sat"]:
        assert tokenizer(text)["input_ids"] == codec.encode(text)
        assert tokenizer.decode(codec.encode(text)) == text
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == codec.end == codec.encode(END_OF_TEXT)[0]
    assert tokenizer.bos_token_id is None
    assert json.loads((tmp_path / GENERATION).read_text())["eos_token_id"] == codec.end


def test_what_stood_beside_a_tokenizer_goes_along(trained, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    (source / TOKENIZER).write_bytes((trained / TOKENIZER).read_bytes())
    beside = {CONFIG: '{"eos_token": "x"}', GENERATION: '{"eos_token_id": 7}', "chat_template.jinja": "{{ messages }}"}
    for name, content in beside.items():
        (source / name).write_text(content)
    names = write_tokenizer(out, text_of(source, spec(400)), max_length=77)
    assert sorted(path.name for path in out.iterdir()) == names == sorted([TOKENIZER, *beside])
    assert {name: (out / name).read_text() for name in beside} == beside
    assert set(names) <= set(TEXT_FILES)


def test_a_longest_text_is_said_where_it_is_known(tmp_path):
    write_tokenizer(tmp_path, Text(), max_length=512)
    assert auto(tmp_path).model_max_length == 512


# ------------------------------------------------------------------------------------------------ whether ids are text
def run_of(folder, **said):
    """What stands in a run's folder, as far as text goes."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("\n".join(f"{key}: {value}" for key, value in said.items()) + "\n")
    return folder


@pytest.mark.parametrize(
    ("task", "size", "reads_bytes"),
    [("text", 256, True), ("text", 272, True), ("needle", 256, True), ("mqar", 256, False), ("nothing", 256, False)],
)
def test_a_run_says_what_its_ids_are(tmp_path, task, size, reads_bytes):
    run = run_of(tmp_path / "run", task=task)
    for folder in (run, run / "model"):
        assert text_of(folder, spec(size)) == (Text() if reads_bytes else None)


def test_a_runs_own_tokenizer_is_found_from_its_model_too(trained, tmp_path):
    run = run_of(tmp_path / "run", task="text")
    (run / TOKENIZER).write_bytes((trained / TOKENIZER).read_bytes())
    for folder in (run, run / "model"):
        assert text_of(folder, spec(400)) == Text(run / TOKENIZER)


def test_a_model_without_a_run_reads_bytes_if_it_has_as_many_tokens(tmp_path):
    for source in (None, tmp_path):
        assert text_of(source, spec(256)) == Text()
        assert text_of(source, spec(257)) is None
        assert text_of(source, spec(272), "bytes") == Text()


def test_a_model_of_signals_has_no_text(tmp_path):
    numbers = spec(None, embed={"type": "linear", "channels": 2}, head={"type": "classify", "classes": 3})
    assert text_of(tmp_path, numbers) is None
    with pytest.raises(ExportError, match="reads no text"):
        text_of(tmp_path, numbers, "bytes")
    assert write_tokenizer(tmp_path, None) == [GENERATION]


def test_another_models_tokenizer_is_refused(trained, tmp_path):
    with pytest.raises(ExportError, match="bytes has 256 tokens and the model 200"):
        text_of(None, spec(200), "bytes")
    with pytest.raises(ExportError, match=r"tokens and the model 260; it is another model's"):
        text_of(trained, spec(260))
    with pytest.raises(ExportError, match="no such file"):
        text_of(None, spec(256), tmp_path / "none.json")
    (tmp_path / TOKENIZER).write_text("{}")
    with pytest.raises(ExportError, match=r"no tokenizer\.json of the tokenizers library"):
        text_of(tmp_path, spec(256))


def test_no_family_default_ends_a_text_that_has_no_end(tmp_path):
    """LlamaConfig's own eos is 2: a model that only ever says 2 must not stop there."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / GENERATION).unlink()
    for lengths in (3, 8):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        model.lm_head.register_forward_hook(lambda *call: call[-1] + 1e6 * (torch.arange(256) == 2))
        assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=6).shape[1] == lengths
        write_tokenizer(tmp_path, Text())
