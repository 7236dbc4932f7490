"""The pages of the mixers and MLPs say what the code does: every formula in their tables is computed and compared.

A cell in backticks is a formula in the page's letters; `2 e d` is a product, `c^2` a power. A page's tables are known
by the head of their first column: letter, name, field, tensor, quantity.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import hybridlm as hl
from hybridlm.checks import largest_divisor
from hybridlm.ops.hippo import diagonal, dplr
from hybridlm.registry import mixers, mlps
from hybridlm.train.optim import parameter_groups

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/mixers"
MIXERS, PARTS = ([row.name for row in kind.listing() if row.source == "hybridlm"] for kind in (mixers, mlps))
TEXT = {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in MIXERS}
MLPS = (FOLDER / "mlps.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", MLPS, re.DOTALL | re.MULTILINE))
TEXT |= {name: SECTIONS[name] for name in PARTS}
NAMED = {  # initial values with a name
    "s4": dict(zip(("Lambda", "P", "B"), dplr("legs", 64), strict=True)),
    "s5": {"Lambda": diagonal("legs", 64).repeat(16, 1)},
}
DRAWN = 100_000


def _part(name: str) -> type:
    return (mixers if name in mixers else mlps).get(name)


def _table(name: str, head: str) -> list[list[str]]:
    """The rows of the page's table whose first column has that head; its cells as text."""
    found = re.search(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", TEXT[name], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in found[1].splitlines()] if found else []


def _code(cell: str) -> str:
    """The first text in backticks."""
    return re.search(r"`([^`]+)`", cell)[1]


# ------------------------------------------------------------------------------------------------------------ formulas
def _draw(a: float, b: float, uniform: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if uniform:
        return a + (b - a) * torch.rand(DRAWN, generator=generator, dtype=torch.float64)
    return a + b**0.5 * torch.randn(DRAWN, generator=generator, dtype=torch.float64)


def _either(on_tensors, on_numbers):
    return lambda x: on_tensors(x) if isinstance(x, torch.Tensor) else on_numbers(x)


FUNCTIONS = {
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "log2": math.log2,
    "log": _either(torch.log, math.log),
    "exp": _either(torch.exp, math.exp),
    "softplus_inverse": lambda x: x.expm1().log(),
    "largest_divisor": largest_divisor,
    "equal": lambda x, y: x == y,
    "N": lambda mean, variance: _draw(mean, variance, False),
    "U": lambda low, high: _draw(low, high, True),
    "Re": lambda x: x[..., 0],
    "Im": lambda x: x[..., 1],
}


def _value(formula: str, letters: dict):
    """The value of a formula."""
    words = re.findall(r"\"\w+\"|\d+\.?\d*(?:e-?\d+)?|[A-Za-z_]\w*|//|[-+*/^(),]", formula)
    assert "".join(words) == formula.replace(" ", ""), f"what is {formula!r}?"
    text = ""
    for before, word in zip(["", *words], words, strict=False):
        operand_before = re.fullmatch(r"[\w.]+|\)", before) and before not in FUNCTIONS
        text += " * " if operand_before and re.fullmatch(r"[\w.]+|\(", word) else ""
        text += {"^": " ** ", "true": "True", "false": "False", "null": "None"}.get(word, f" {word} ")
    return eval(text, {"__builtins__": {}}, {**FUNCTIONS, **letters})


def _letters(name: str, config, d: int, **more) -> dict:
    """d, the fields of the config, and the page's letters, in the order in which it introduces them."""
    known = {"d": d, "pi": math.pi, **{field: getattr(config, field) for field in config.__dataclass_fields__}, **more}
    for letter, meaning in _table(name, "letter"):
        known[_code(letter)] = _value(_code(meaning), known)
    return known


def test_formulas_are_read_as_they_are_written():
    assert _value("2 d p (h + hk) + 2^ceil(log2(9)) / 4 - c^2", {"d": 3, "p": 5, "h": 1, "hk": 1, "c": 2}) == 60
    with pytest.raises(AssertionError, match="what is"):
        _value("d!", {"d": 1})


def test_every_part_has_a_page():
    assert {path.stem for path in FOLDER.glob("*.md")} == {*MIXERS, "mlps"}
    assert set(SECTIONS) == {*PARTS, "none"}


# -------------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("d", [128, 320])
def test_config_table(name, d):
    """Every field, in order, with its default as a layer of width d resolves it."""
    config = _part(name).Config().resolve(d)
    rows = {_code(field): _code(default) for field, default, _ in _table(name, "field")}
    assert list(rows) == list(config.__dataclass_fields__)
    letters = _words(config) | _letters(name, config, d)
    shown = {field: repr(_value(default, letters)) for field, default in rows.items()}
    assert shown == {field: repr(getattr(config, field)) for field in rows}


@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("name", TEXT)
def test_parameter_table(name, switched):
    """Every parameter: its shape, its group in the optimiser, and how its first values are distributed."""
    part, d = _part(name), 1024
    switches = {row[0].split("`")[3] for row in _table(name, "name") if " with " in row[0]}
    config = part.Config(**dict.fromkeys(switches, switched)).resolve(d)
    module = part(config, d)
    letters = _letters(name, config, d, **NAMED.get(name, {}))
    rows = [row for row in _table(name, "name") if " with " not in row[0] or getattr(config, row[0].split("`")[3])]
    parameters = dict(module.named_parameters())
    assert sorted(_code(row[0]) for row in rows) == sorted(parameters)
    groups = _groups(module)
    for title, shape, initial, group in rows:
        parameter = parameters[_code(title)]
        assert _shape(shape, letters) == tuple(parameter.shape), title
        assert group == groups[_code(title)], title
        letters["i"] = torch.arange(parameter.shape[-1], dtype=torch.float64)
        _assert_drawn_from(parameter.detach().double(), _value(_code(initial), letters), title)


def _words(config) -> dict[str, str]:
    """Defaults that are no numbers, and the items of lists of such: each stands for itself."""
    values = [getattr(config, field) for field in config.__dataclass_fields__]
    items = [item for value in values for item in (value if isinstance(value, tuple) else [value])]
    return {item: item for item in items if isinstance(item, str)}


def _shape(cell: str, letters: dict) -> tuple[int, ...]:
    """`(b, min(w, T), p)` -> numbers."""
    inside = _code(cell).removeprefix("(").removesuffix(")")
    return tuple(int(_value(side, letters)) for side in re.split(r",(?![^(]*\))", inside))


def _groups(module) -> dict[str, str]:
    """{parameter: what the table says of its group}."""
    words = {}
    for group in parameter_groups(module, weight_decay=0.5, lr=1.0):
        decay = "decay" if group["weight_decay"] else "no decay"
        bound = f", lr at most {group['lr_max']:g}" if math.isfinite(group["lr_max"]) else ""
        words |= dict.fromkeys(group["names"], decay + bound)
    return words


def _assert_drawn_from(parameter: torch.Tensor, expected, title: str) -> None:
    """Equal where values are given; where they are drawn, Kolmogorov and Smirnov cannot tell the samples apart."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    if expected.numel() != DRAWN:
        torch.testing.assert_close(parameter, expected.expand_as(parameter), rtol=1e-6, atol=1e-7, msg=title)
        return
    sample = parameter.flatten()[:DRAWN].sort().values
    ranks = torch.searchsorted(expected.sort().values, sample).double() / DRAWN
    steps = torch.arange(len(sample) + 1, dtype=torch.float64) / len(sample)
    distance = max((ranks - steps[:-1]).abs().max(), (ranks - steps[1:]).abs().max())
    assert distance < 1.95 * (1 / len(sample) + 1 / DRAWN) ** 0.5, title  # exceeded once in 1,000 draws


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("length", [7, 2048])
def test_state_table(name, length):
    """Every tensor, in order: its shape and dtype."""
    part, d, batch = _part(name), 128, 3
    config = part.Config().resolve(d)
    state = part(config, d).init_state(batch, length, dtype=torch.bfloat16).tensors()
    rows = _table(name, "tensor")
    letters = _letters(name, config, d, b=batch, T=length)
    assert [_code(row[0]) for row in rows] == list(state)
    dtypes = {"compute": torch.bfloat16, "float32 at least": torch.float32}
    for (_, shape, dtype), tensor in zip(rows, state.values(), strict=True):
        assert _shape(shape, letters) == tuple(tensor.shape)
        assert dtypes[dtype] == tensor.dtype


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("tokens", [2, 16, 63, 65, 200, 1500])
def test_cost_table(name, tokens):
    """Every formula against `cost`, and none is missing."""
    part, d, past, length, itemsize = _part(name), 96, 1234, 3000, 2
    config = part.Config().resolve(d)
    cost = part.cost(config, d)
    letters = _letters(name, config, d, t=tokens, L=past, T=length, s=itemsize)
    whole, more, one = cost.forward(tokens, 0), cost.forward(tokens, past), cost.forward(1, past)
    state = cost.state(length, itemsize)
    known = {
        "parameters": cost.parameters,
        "matmul FLOPs, t tokens": whole.matmul,
        "scan FLOPs, t tokens": whole.scan,
        "FFT FLOPs, t tokens": whole.fft,
        "matmul FLOPs, t tokens after L": more.matmul,
        "matmul FLOPs, one token after L": one.matmul,
        "scan FLOPs, one token after L": one.scan,
        "KV bytes": state.kv,
        "SSM bytes": state.ssm,
    }
    shown = {}
    for quantity, formula in _table(name, "quantity"):
        value = _value(_code(formula), letters)
        (shown if quantity in known else letters)[quantity] = value
    assert {key: pytest.approx(value, rel=1e-12) for key, value in shown.items()} == {key: known[key] for key in shown}
    missing = {key for key, value in known.items() if value} - set(shown)
    assert missing <= {"matmul FLOPs, t tokens after L"}
    assert not missing or whole.matmul == more.matmul


# -------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("name", MIXERS)
def test_example_is_the_shipped_config(name):
    (example,) = re.findall(r"^```yaml\n(.*?)^```", TEXT[name], re.DOTALL | re.MULTILINE)
    lines = (ROOT / f"configs/models/{name}.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    assert example == "".join(line for line in lines if not line.startswith("#"))


def test_example_of_the_mlps_page(tmp_path):
    (example,) = re.findall(r"^```yaml\n(.*?)^```", MLPS, re.DOTALL | re.MULTILINE)
    (tmp_path / "model.yaml").write_text(example, encoding="utf-8")
    model = hl.build(tmp_path / "model.yaml")
    assert [(type(block.mixer).__name__, type(block.mlp).__name__) for block in model.blocks] == [
        ("Mamba2", "NoneType"),
        ("NoneType", "ReLU2"),
        ("Attention", "NoneType"),
        ("NoneType", "ReLU2"),
    ]


@pytest.mark.parametrize("name", MIXERS)
def test_first_line_names_type_and_letter(name):
    assert f"`type: {name}`, letter `{_part(name).letter}`." in TEXT[name]


@pytest.mark.parametrize("name", MIXERS)
def test_rollback_is_as_the_page_says(name):
    refused = "`rollback` is refused" in TEXT[name]
    assert refused != ("can `rollback`" in TEXT[name])
    assert refused != _part(name).rolls_back
