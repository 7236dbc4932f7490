"""Fuzzing of everything that reads text: patterns, foreign notations, YAML. Seeded; parses only.

Whatever the text, the answer is a tree or one of the documented errors, in under a second. At least 30% of the inputs
are legal, so that the fuzzer exercises more than the first error of each parser. A legal pattern must also print to
itself, and a legal YAML file survive writing and reading.
"""

import random
import time

import pytest

from hybridlm.compose import notation, pattern, strict_yaml
from hybridlm.errors import PatternError, SpecError

ALPHABET = "MAWSm()<>|[]{}@-*0123456789 \n,:'\"$&!#%\\éА²\x00\ufeff\t"
LETTERS = "MAWSm"
LEGAL_YAML = [
    'd_model: 256\npattern: "(M3A)2"\nblocks:\n  M: {mixer: {type: mamba2, d_state: 64}, mlp: {type: swiglu}}\n',
    "a: {b: [1, 2.5, 1e-3, true, null, 'x', \"y\\n\"]}\nc: |\n  text\n  more\n",
    "d_model: 64\nwidth: ${d_model}\npattern: 'W{window: ${w.x}}'\nw: {x: 128}\n",
    "- not\n- a mapping\n",
    "a: &x 1\nb: *x\n<<: {c: 1}\n",
]


class Maker:
    """Random inputs. One of four kinds: grown from the grammar, a mutation of a legal text, YAML, random bytes."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def override(self) -> str:
        keys = self.random.sample(["window", "rope", "a_b", "heads"], self.random.randint(0, 2))
        value = ["128", "1e-3", "true", "'it''s'", '"}"', "[1, 2]", "{b: {c: x}}", "null", "no"]
        return "{" + ", ".join(f"{key}: {self.random.choice(value)}" for key in keys) + "}"

    def block(self) -> str:
        name = self.random.choice([*LETTERS, "[ssm]", "[a-b_1]"])
        return name + (self.override() if self.random.random() < 0.1 else "")

    def item(self, depth: int) -> str:
        kind = self.random.random()
        if kind < 0.2 and depth < 4:
            text = f"({self.items(depth + 1)})"
        elif kind < 0.3:
            text = f"<{'|'.join(self.block() for _ in range(self.random.randint(2, 3)))}>"
        else:
            text = self.random.choice([self.block, lambda: "-"])() if kind < 0.5 else self.block()
            text += self.random.choice(["@shared ", "@x"]) if self.random.random() < 0.1 else ""
        return text + (
            str(self.random.choice([2] * 9 + [3] * 9 + [12] * 4 + [64, 4096])) if self.random.random() < 0.3 else ""
        )

    def items(self, depth: int = 0) -> str:
        return self.random.choice(["", "", " ", "\n"]).join(self.item(depth) for _ in range(self.random.randint(1, 5)))

    def value(self, depth: int = 0) -> object:
        kind = self.random.random()
        if depth < 4 and kind < 0.3:
            return {self.word(): self.value(depth + 1) for _ in range(self.random.randint(0, 4))}
        if depth < 4 and kind < 0.45:
            return [self.value(depth + 1) for _ in range(self.random.randint(0, 4))]
        return self.random.choice([None, True, 3, -1.5e-7, float("inf"), "no", "1e-3", self.word(), self.noise(6)])

    def word(self) -> str:
        return "".join(self.random.choice("abcXYZ_-. 10") for _ in range(self.random.randint(1, 8)))

    def noise(self, size: int) -> str:
        if self.random.random() < 0.5:
            return "".join(self.random.choice(ALPHABET) for _ in range(size))
        return self.random.randbytes(size).decode(self.random.choice(["latin-1", "utf-16-le"]), "replace")

    def mutated(self, text: str) -> str:
        for _ in range(self.random.randint(1, 3)):
            at, end = sorted(self.random.randint(0, len(text)) for _ in range(2))
            end = min(end, at + 8)
            piece = self.random.choice([self.noise(self.random.randint(0, 3)), text[at:end] * 2, "", text[end:at:-1]])
            text = text[:at] + piece + text[end:]
        return text * self.random.choice([1] * 60 + [50, 2000])

    def pattern(self) -> str:
        kind = self.random.random()
        if kind < 0.5:
            return self.items()
        return self.mutated(self.items()) if kind < 0.9 else self.noise(self.random.choice([3, 30, 3000]))

    def yaml(self) -> str:
        kind = self.random.random()
        if kind < 0.45:
            return strict_yaml.dump({self.word(): self.value() for _ in range(self.random.randint(1, 4))})
        if kind < 0.9:
            return self.mutated(self.random.choice(LEGAL_YAML))
        return self.noise(self.random.choice([3, 30, 3000]))

    def foreign(self) -> tuple[object, str]:
        kind = self.random.choice(["megatron", "layer_types", "attn_layer_idx"])
        if kind == "megatron":
            text = "".join(self.random.choice("MM--*E") for _ in range(self.random.randint(1, 60)))
            return (text if self.random.random() < 0.6 else self.mutated(text)), kind
        if kind == "layer_types":
            types = ["full_attention", "sliding_attention", "mamba"] + ["linear_attention"] * (
                self.random.random() < 0.2
            )
            return [self.random.choice(types) for _ in range(self.random.randint(1, 60))], kind
        depth = self.random.choice([0, 1, 8, 24])
        layers = self.random.sample(range(-1, 26), self.random.randint(0, 3))
        return {"n_layer": depth, "attn_layer_idx": [at for at in layers if at < depth or layers[0] < 3]}, kind


def read_pattern(maker: Maker) -> None:
    names = maker.random.choice([None, [*LETTERS, "ssm", "a-b_1"]])
    tree = pattern.parse(maker.pattern(), names)
    assert pattern.parse(str(tree)) == tree
    assert 1 <= tree.length <= 4096


def read_yaml(maker: Maker) -> None:
    mapping = strict_yaml.load(maker.yaml(), name="fuzz.yaml")
    assert strict_yaml.compose(strict_yaml.dump(mapping), name="fuzz.yaml") == mapping


def read_foreign(maker: Maker) -> None:
    assert pattern.parse(notation.read(*maker.foreign())[0]).length >= 1


def fuzz(count: int) -> str:
    """Read `count` inputs; a line of figures. Whatever else is raised than the documented errors comes through."""
    readers = [read_pattern] * 6 + [read_yaml] * 3 + [read_foreign]
    legal, slowest = 0, 0.0
    for seed in range(count):
        maker = Maker(seed)
        start = time.perf_counter()
        try:
            readers[seed % len(readers)](maker)
            legal += 1
        except (PatternError, SpecError):
            pass
        took = time.perf_counter() - start
        slowest = max(slowest, took)
        assert took < 1, f"input {seed} took {took:.2f} s"
    assert legal >= 0.3 * count
    return f"{count:,} inputs, {legal / count:.0%} legal, slowest {slowest * 1e3:.0f} ms"


def test_fuzz():
    print(fuzz(10_000))


@pytest.mark.deep
def test_fuzz_deep():
    print(fuzz(200_000))
