"""What a study is going to do, as tables in the terminal: its arms with their stacks drawn, costs, runs and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridlm.ablate.arms import Arm
from hybridlm.ablate.match import UNITS
from hybridlm.ablate.parts import Claim
from hybridlm.ablate.predict import Prediction, readable_time
from hybridlm.ablate.study import Study
from hybridlm.compose.pattern import Parallel, parse
from hybridlm.compose.picture import MLP_COLOUR, colours
from hybridlm.compose.plan import LayerPlan, plan
from hybridlm.train.console import Terminal

WIDE = 200
DRAWN = 64
"""Layers of a stack that are drawn."""


def show(study: Study, predicted: Prediction) -> None:
    """Print it all on stdout."""
    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # into a pipe nothing need be squeezed
    from rich.markup import escape

    console.print(f"[bold]{study.name}[/]: {escape(study.question)}", soft_wrap=True)
    for line in summary(study, predicted):
        console.print(f"  {escape(line)}", soft_wrap=True)
    console.print(_stacks(study, predicted))
    console.print(_costs(study))
    console.print(_legend(study), soft_wrap=True)
    if study.claims:
        console.print("\n[bold]Claims[/]")
    for claim in study.claims:
        console.print(f"  {escape(claim.name)}: {escape(bar(claim))}", soft_wrap=True)
    for warning in study.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True)


def summary(study: Study, predicted: Prediction) -> list[str]:
    """What all arms have in common, and the time, as sentences."""
    data, train = study.data, study.train
    about = (
        f"{data.task} {dict(data.params) or ''}".strip() if data.task else f"text {data.text}, context {data.context}"
    )
    rates = ", ".join(f"{lr:g}" for lr in study.lr)
    rates += f", and up to {study.widen} more at an end where an arm does best" if study.widen else ""
    budget = f" of {readable_time(study.budget.seconds)}" if study.budget else ""
    return [
        f"data: {about}; {train.steps:,} steps of {train.batch_size}, {train.schedule}, {train.precision}",
        *(f"test {test.name}: {test.task or test.text} {dict(test.params) or ''}".rstrip() for test in study.eval),
        f"{len(study.runs())} runs: {len(study.arms)} arms, {study.seeds} seeds, learning rates {rates}",
        f"match: {f'{study.match} by {study.match.by}' if study.match else 'none'}; reference: {study.reference}",
        f"time: at most {readable_time(predicted.seconds)}{budget}: {predicted.basis}",
    ]


def bar(claim: Claim) -> str:
    """A claim as a sentence."""
    if claim.kind == "difference":
        said = f"{claim.metric} of {claim.arm} better than that of {claim.over} by more than {claim.by:g}"
    elif claim.kind == "argmin":
        low, high = claim.argmin_between
        said = f"{claim.metric} is best along {claim.axis} between {low:g} and {high:g}"
    elif claim.kind == "trend":
        said = f"{claim.metric} better by more than {claim.increasing:g} at each of {', '.join(claim.arms)}"
    else:
        limit = f"at least {claim.at_least:g}" if claim.at_least is not None else f"at most {claim.at_most:g}"
        said = f"{claim.metric} of {claim.arm} {limit} in {claim.seeds or 'all'} seeds"
    return f"{said}; needs {', '.join(claim.needs)}" if claim.needs else said


# -------------------------------------------------------------------------------------------------------------- tables
def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=f"[bold]{title}[/]", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _stacks(study: Study, predicted: Prediction) -> Any:
    """Each arm drawn, with its runs and their time."""
    from rich.markup import escape

    table = _table("Arms", ["arm", "stack", "pattern"], ["d_model", "MLP", "runs", "time"])
    seen: dict[Any, str] = {}
    for arm in study.arms:
        layers = plan(arm.spec).layers
        same = seen.setdefault(arm.spec, arm.name)
        runs = str(len(study.lr) * study.seeds) if same == arm.name else f"as {same}"
        time = readable_time(predicted.arms[arm.name]) if same == arm.name else ""
        width = str(arm.spec.d_model)
        table.add_row(escape(arm.name), drawn(layers), escape(arm.spec.pattern), width, _widths(layers), runs, time)
    return table


def drawn(layers: Sequence[LayerPlan]) -> str:
    """A stack from the bottom up, a letter for each mixer in its colour, as rich markup."""
    places = []
    for layer in layers[:DRAWN]:
        (place,) = parse(layer.name).places()
        names = [member.name for member in place.members] if isinstance(place, Parallel) else [place.name]
        shades = colours([part.type for part in layer.mixers]) or [MLP_COLOUR]
        letters = (f"[{shade}]{name[0]}[/]" for shade, name in zip(shades, names, strict=True))
        places.append("|".join(letters))
    return "".join(places) + "..." * (len(layers) > DRAWN)


def _widths(layers: Sequence[LayerPlan]) -> str:
    """The different widths of its MLPs."""
    widths = dict.fromkeys(layer.mlp.to_dict().get("width", "?") for layer in layers if layer.mlp)
    return ", ".join(map(str, widths)) or "none"


def _legend(study: Study) -> str:
    types = {part.type: None for arm in study.arms for layer in plan(arm.spec).layers for part in layer.mixers}
    return "  ".join(f"[{shade}]■[/] {name}" for name, shade in zip(types, colours(list(types)), strict=True))


def _costs(study: Study) -> Any:
    """What each arm costs, the three shares of attention, and what is left of the match."""
    from rich.markup import escape

    length = study.arms[0].cost.length
    shares = ["attention\nof layers", "\nof mixers", "\nof params"]
    costs = ["parameters", "FLOPs a token\ntraining", f"\nat {length:,}", f"cache bytes\nat {length:,}"]
    matched = [f"residual\n({UNITS[study.match.to]})"] if study.match else []
    table = _table("Costs", ["arm"], [*costs, *shares, *matched])
    for arm in study.arms:
        residual = [f"{arm.residual:+.2%}"] if arm.residual is not None else []
        table.add_row(escape(arm.name), *_numbers(arm), *residual)
    return table


def _numbers(arm: Arm) -> list[str]:
    cost = arm.cost
    counts = [cost.params, round(cost.flops_train), round(cost.flops_infer), cost.cache_bytes]
    shares = [cost.attention_of_layers, cost.attention_of_mixers, cost.attention_of_parameters]
    return [*(f"{count:,}" for count in counts), *(f"{share:.1%}" for share in shares)]
