"""Import and files: shards of others are streamed, and what belongs to their text goes along."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import hybridlm as hl
from hybridlm.errors import CheckpointError, ExportError
from hybridlm.export.lift import lift
from hybridlm.export.tokenizer import CONFIG, GENERATION, Text, write_tokenizer
from hybridlm.shards import INDEX, WEIGHTS, ShardReader
from hybridlm.text import TOKENIZER

IDS = torch.arange(18).reshape(2, 9)


def llama(folder, shard="1GB"):
    """A checkpoint that transformers wrote."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **sizes)).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", ["one file", "shards", "pickle"])
def test_each_form_of_a_checkpoint_gives_the_same_model(tmp_path, form):
    model = llama(tmp_path / "theirs", "20KB" if form == "shards" else "1GB")
    assert (INDEX in listing(tmp_path / "theirs")) == (form == "shards")
    if form == "pickle":
        torch.save(model.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
        (tmp_path / "theirs" / WEIGHTS).unlink()
    lift(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(hl.load(tmp_path / "ours")(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_missing_shard_leaves_no_trace(tmp_path):
    llama(tmp_path / "theirs", "20KB")
    next((tmp_path / "theirs").glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="missing: model-00002-of-"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    assert listing(tmp_path) == ["theirs"]


def test_what_belongs_to_text_goes_along_and_what_was_there_before_does_not_stay(tmp_path):
    llama(tmp_path / "theirs")
    names = write_tokenizer(tmp_path / "theirs", Text())
    (tmp_path / "theirs" / "special_tokens_map.json").write_text("{}")
    lift(tmp_path / "theirs", tmp_path / "ours")
    for name in (*names, "special_tokens_map.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    for name in (TOKENIZER, CONFIG, GENERATION):
        (tmp_path / "theirs" / name).unlink()
    lift(tmp_path / "theirs", tmp_path / "ours")
    assert listing(tmp_path / "ours") == sorted(["config.json", "manifest.json", WEIGHTS, "special_tokens_map.json"])


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[1]", b'{"model": 3}'])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, content):
    llama(tmp_path / "theirs")
    (tmp_path / "theirs" / TOKENIZER).write_bytes(content)
    with pytest.raises(ExportError, match=r"theirs/tokenizer\.json: no tokenizer.*import the folder without it"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    assert listing(tmp_path) == ["theirs"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_told(tmp_path):
    llama(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs", Text())
    notes = []
    lift(tmp_path / "theirs", tmp_path / "ours", tell=notes.append)
    assert notes == []
    file = tmp_path / "theirs" / TOKENIZER
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save(str(file))
    lift(tmp_path / "theirs", tmp_path / "ours", tell=notes.append)
    assert notes == [f"{file}: 257 tokens, and the model has 256; `hybridlm generate` reads no text with it"]
    assert (tmp_path / "ours" / TOKENIZER).is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name, value):
    """As by export; the tensor is named as the checkpoint has it."""
    llama(tmp_path / "theirs")
    file = tmp_path / "theirs" / WEIGHTS
    held = load_file(file)
    held[name].view(-1)[-1] = value
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"^{name}: NaN or infinite"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    assert listing(tmp_path) == ["theirs"]


STREAMS = """
import json, sys, torch
import hybridlm as hl
from pathlib import Path
from hybridlm.export.lift import lift
from hybridlm.shards import Entry, ShardWriter

folder, width, depth, limit = Path(sys.argv[1]), *map(int, sys.argv[2:])


def peak():  # not getrusage: its figure begins with that of the process which started this one
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def forget():
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is held now


def checkpoint(folder, width, depth, vocab):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth, "vocab_size": vocab}
    about = {"model_type": "llama", "num_attention_heads": width // 8, "num_key_value_heads": width // 8, **sizes}
    shapes = {f"{name}.weight": (vocab, width) for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = (width,)
    for at in (f"model.layers.{k}." for k in range(depth)):
        shapes |= {f"{at}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (2 * width, width) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, 2 * width)}
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    with ShardWriter(folder, [Entry(n, torch.float32, s) for n, s in shapes.items()], max_bytes=limit) as writer:
        for name, shape in shapes.items():
            writer.write(name, torch.full(shape, 0.5))
    (folder / "config.json").write_text(json.dumps(about))


checkpoint(folder / "small", 32, 1, 64)
lift(folder / "small", folder / "small-ours")
checkpoint(folder / "theirs", width, depth, 4 * width)
forget()
before = peak()
lift(folder / "theirs", folder / "ours")
streamed = peak() - before
model = hl.load(folder / "ours")
total = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps({"streamed": streamed, "held": peak() - before, "total": total}))
"""


@pytest.mark.deep
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("width", "depth", "limit", "room"),
    [(512, 8, 16 << 20, 32 << 20), (2048, 12, 300 << 20, 500 << 20)],
    ids=["92 MB", "2 GB"],
)
def test_an_import_takes_the_memory_of_one_shard(tmp_path, width, depth, limit, room):
    """The same script then loads all of it, which shows that what it measures is there to be seen."""
    arguments = [str(tmp_path), str(width), str(depth), str(limit)]
    done = subprocess.run([sys.executable, "-c", STREAMS, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    largest = max(path.stat().st_size for path in (tmp_path / "theirs").glob("model-*"))
    assert found["streamed"] < largest + room < found["total"]
    assert found["held"] > 0.9 * found["total"]
    assert ShardReader(tmp_path / "ours").nbytes == found["total"]
