"""`hybridlm describe`: what a model costs, before it exists."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from hybridlm.checks import whole
from hybridlm.cli.complain import UsageError
from hybridlm.cli.models import read_spec
from hybridlm.compose.picture import colours, suffix_of

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def describe(
    model: str,
    d_model: int | None = None,
    vocab_size: int | None = None,
    context: str = "2048,131072",
    batch: int = 1,
    dtype: Dtype = "float32",
    json: bool = False,
    plot: str | None = None,
) -> None:
    """Parameters, FLOPs a token and bytes of state, by layer and in all, from the spec alone.

    Args:
        model: a YAML file, the name of a shipped one such as tiny, a run folder, or a pattern such as "(M3A)12".
        d_model: width; of a pattern 256 by default, of a file what it says.
        vocab_size: number of token ids; of a pattern 256 by default (bytes), of a file what it says.
        context: lengths of documents, with commas between them.
        batch: rows of the state.
        dtype: the compute dtype of the state.
        json: print JSON instead of tables; its keys are documented in hybridlm/compose/describe.py.
        plot: draw the stack, and cache bytes against context, into this file (.svg or .png).
    """
    import torch

    from hybridlm.compose.cost import model_cost
    from hybridlm.compose.describe import describe as numbers
    from hybridlm.export.choice import exportable

    contexts = _contexts(context)
    whole("--batch", batch)
    suffix = None if plot is None else suffix_of(plot)
    cost = model_cost(read_spec(model, d_model=d_model, vocab_size=vocab_size))
    about = numbers(cost, contexts, batch=batch, dtype=getattr(torch, dtype)) | {"export": exportable(cost.stack)}
    if suffix:
        from hybridlm.compose.picture import draw

        draw(cost, plot, batch=batch, dtype=getattr(torch, dtype))
    _print_json(about) if json else _print_tables(about)
    if suffix:
        print(f"picture: {plot}", file=sys.stderr)


def _contexts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"--context: {text!r}; it must be lengths with commas between them, such as 2048,131072")
    return [whole("--context", int(word), high=1 << 40) for word in dict.fromkeys(words)]


def _print_json(about: dict) -> None:
    import json

    print(json.dumps(about, indent=2, ensure_ascii=False))


# -------------------------------------------------------------------------------------------------------------- tables
def _print_tables(about: dict) -> None:
    from hybridlm.train.console import Terminal

    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = 160  # into a pipe nothing need be squeezed
    console.print(f"[bold]{_escape(about['pattern'])}[/]", soft_wrap=True)
    for line in _summary(about):
        console.print(f"  {line}", soft_wrap=True)
    for table in [
        _layer_table(about),
        *(_context_table(about, context) for context in about["at"]),
        _state_table(about),
    ]:
        console.print(f"\n[bold]{table.title}[/]", soft_wrap=True)
        table.title = None
        console.print(table)


def _summary(about: dict) -> Iterable[str]:
    parameters, attention = about["parameters"], about["attention"]
    layers = f"{about['layers']} layer{'s' * (about['layers'] > 1)}"
    yield ", ".join([layers, f"d_model {about['d_model']}", *_ends(about)])
    active = f", of which a token uses {parameters['active']:,}" if parameters["active"] < parameters["total"] else ""
    yield f"{parameters['total']:,} parameters{active}"
    yield from _attention(about, attention)
    yield from _exportable(about["export"])


def _attention(about: dict, attention: dict) -> Iterable[str]:
    if not attention["mixers"] and not attention["positions"]:
        yield "no attention"
        return
    mixers = sum(kind["count"] * len(kind["mixers"]) for kind in about["kinds"])
    yield (
        f"attention in {attention['layers']} of {about['layers']} layers, {attention['mixers']} of {mixers} mixers "
        f"({attention['of_mixers']:.0%}), {attention['of_parameters']:.1%} of the parameters"
    )
    yield f"positions: {attention['positions'] or 'none'} ({attention['why']})"


def _exportable(export: dict) -> Iterable[str]:
    """The families that hold it exactly, and what keeps it from the nearest other one."""
    if not export["as"] and not export["misfits"]:
        yield "no language model, so that no family of others holds it"
        return
    yield f"exportable as: {', '.join(export['as']) or 'remote-code alone, as none of the families that others serve'}"
    if nearest := export["nearest"]:
        yield f"not as {nearest}: {'; '.join(export['misfits'][nearest])}"


def _ends(about: dict) -> Iterable[str]:
    """What goes in and what comes out, as far as it is not a language model's."""
    embed, head = about["embed"], about["head"]
    if about["vocab_size"] is not None:
        yield f"vocabulary {about['vocab_size']:,}"
    if about["tie_embeddings"]:
        yield "tied"
    if isinstance(embed, dict):
        yield f"{embed['channels']} channels in"
    if isinstance(head, dict):
        many = f"{head['outputs']} numbers" if head["type"] == "regress" else f"{head['classes']} classes"
        where = {"none": "at every step", "all": "of every step, from the last vector"}
        pool = head.get("pool", "all")
        yield f"{many} out ({where.get(pool, f'pool {pool}')})"


def _table(title: str, columns: Sequence[str], left: int) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if i < left else "right",
            no_wrap=i > 1,
            min_width=10 if i == 0 else None,
            overflow="fold",
        )
    return table


def _layer_table(about: dict) -> Any:
    table = _table("Layers", ["block", "mixer", "MLP", "where", "×", "parameters", "share"], left=4)
    total = about["parameters"]["total"]

    def row(*cells: str, parameters: int) -> None:
        table.add_row(*cells, f"{parameters:,}", f"{parameters / total:.1%}")

    row("embedding", "", "", "", "1", parameters=about["parameters"]["embedding"])
    for kind in about["kinds"]:
        mixer = _chips(kind["mixers"]) or "-"
        cells = (_escape(kind["block"]), mixer, _beside(kind), where(kind["layers"]), str(kind["count"]))
        row(*cells, parameters=kind["parameters"])
    row("norm and head", "", "", "", "1", parameters=about["parameters"]["final_norm"] + about["parameters"]["head"])
    table.add_section()
    row("total", "", "", "", str(about["layers"]), parameters=total)
    return table


def _beside(kind: dict) -> str:
    """Its MLP, and under it what else it does."""
    return "\n".join([kind["mlp"] or "-", *(_option(word, said) for word, said in kind.get("options", {}).items())])


def _option(word: str, said: Any) -> str:
    if isinstance(said, dict):
        said = " and ".join(f"{rank} on the {half}" for half, rank in said.items() if rank)
    return f"{word.replace('_', ' ')}: {said}"


def _context_table(about: dict, context: str) -> Any:
    rows = [(_escape(kind["block"]), kind["count"], kind["at"][context]) for kind in about["kinds"]]
    if isinstance(about["embed"], dict):
        rows.insert(0, ("embedding", 1, about["embed_at"][context]))
    rows += [("head", 1, about["head_at"][context]), ("total", about["layers"], about["at"][context])]
    shown = [column for column in COLUMNS if column in ALWAYS or any(_number(costs, column) for *_, costs in rows)]
    title = f"At context {int(context):,}: FLOPs a token, and state of {about['batch']} x {about['dtype']}"
    table = _table(title, ["block", "×", *(COLUMNS[column] for column in shown)], left=1)
    for block, count, costs in rows:
        if block == "total":
            table.add_section()
        table.add_row(block, str(count), *(_cell(costs, column) for column in shown))
    return table


COLUMNS = {
    ("training_flops", "matmul"): "training\nmatmul",
    ("training_flops", "scan"): "\nscan",
    ("training_flops", "fft"): "\nFFT",
    ("decoding_flops", "matmul"): "decoding\nmatmul",
    ("decoding_flops", "scan"): "\nscan",
    ("decoding_flops", "fft"): "\nFFT",
    ("state_bytes", "kv"): "state\nKV",
    ("state_bytes", "ssm"): "\nSSM",
}
ALWAYS = [("training_flops", "matmul"), ("decoding_flops", "matmul"), ("state_bytes", "kv"), ("state_bytes", "ssm")]


def _number(costs: dict, column: tuple[str, str]) -> int:
    return costs[column[0]][column[1]]


def _cell(costs: dict, column: tuple[str, str]) -> str:
    number = _number(costs, column)
    return "-" if not number else readable_bytes(number) if column[0] == "state_bytes" else readable_count(number)


def _state_table(about: dict) -> Any:
    title = f"State of {about['batch']} x {about['dtype']}, beside a twin with full attention in every layer"
    table = _table(title, ["context", "KV", "SSM", "total", "twin", "twin / this"], left=0)
    for context, costs in about["at"].items():
        state, twin = costs["state_bytes"], costs["all_attention_bytes"]
        parts = [readable_bytes(state[key]) for key in ("kv", "ssm", "total")]
        ratio = f"{twin / state['total']:.1f}x" if state["total"] else "-"
        table.add_row(f"{int(context):,}", *parts, readable_bytes(twin), ratio)
    return table


def _chips(mixers: Sequence[str]) -> str:
    return " | ".join(f"[{colour}]■[/] {name}" for name, colour in zip(mixers, colours(mixers), strict=True))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def where(layers: Sequence[int]) -> str:
    """Indices as ranges, at most three of them: 0-2, 4-6, ... 44-46."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(texts if len(texts) <= 3 else [*texts[:2], f"... {texts[-1]}"])


def readable_count(number: float) -> str:
    """Three digits and a letter: 12.3M."""
    return _scaled(number, 1000, ["", "k", "M", "G", "T", "P", "E", "Z"])


def readable_bytes(number: float) -> str:
    """Three digits and a binary unit: 12.3 MiB."""
    return _scaled(number, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB", " ZiB"])


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    at = 0
    while number >= base - 0.5 and at < len(units) - 1:
        number, at = number / base, at + 1
    digits = 0 if at == 0 or number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}{units[at]}"
