"""AdamW's parameter groups and learning-rate schedules.

Decay pulls weights towards zero, which is a sane prior for matrices and a wrong one for everything else: a zero A_log,
dt bias, norm or embedding means something. Mixers say which of their parameters these are (`Mixer.param_groups`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hybridlm.errors import SpecError
from hybridlm.layers.mixer import Mixer

Schedule = Literal["cosine", "wsd", "constant"]
_GROUP_KEYS = {"weight_decay", "lr_max"}


def parameter_groups(model: nn.Module, *, weight_decay: float, lr: float) -> list[dict]:
    """Every trainable parameter in exactly one group of AdamW.

    Matrices decay. Parameters of fewer than two dimensions (norms, biases), embeddings, and what a mixer declares in
    `param_groups` as `{"weight_decay": 0}` do not. `{"lr_max": x}` bounds a parameter's learning rate throughout.

    Returns:
        Groups with keys params, names, weight_decay, lr and lr_max (inf where nothing bounds it).

    Raises:
        SpecError: a mixer declares a parameter that it has not, or a setting that is unknown.
    """
    declared = dict(_declared(model))
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():  # each once, however many names tie it
        if not parameter.requires_grad:
            continue
        own = declared.get(id(parameter), {})
        spared = parameter.ndim < 2 or id(parameter) in embeddings
        decay = float(own.get("weight_decay", 0.0 if spared else weight_decay))
        lr_max = float(own.get("lr_max", math.inf))
        empty = {"params": [], "names": [], "weight_decay": decay, "lr": lr, "lr_max": lr_max}
        group = groups.setdefault((decay, lr_max), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _declared(model: nn.Module) -> Iterator[tuple[int, Mapping[str, float]]]:
    """(id of a parameter, what its mixer says of it). An optional parameter that is switched off is passed over."""
    for path, mixer in model.named_modules():
        if not isinstance(mixer, Mixer):
            continue
        for name, settings in mixer.param_groups.items():
            where = f"{path} ({type(mixer).__name__}.param_groups[{name!r}])"
            if unknown := set(settings) - _GROUP_KEYS:
                raise SpecError(f"{where}: unknown settings {sorted(unknown)}; known: {sorted(_GROUP_KEYS)}")
            try:
                parameter = _lookup(mixer, name)
            except AttributeError:
                raise SpecError(f"{where}: {type(mixer).__name__} has no parameter of that name") from None
            if parameter is not None:
                yield id(parameter), settings


def _lookup(module: nn.Module, path: str) -> nn.Parameter | None:
    *folders, name = path.split(".")
    for folder in folders:
        module = getattr(module, folder)
    return getattr(module, name)


def schedule_factor(step: int, *, total: int, schedule: Schedule, warmup: int, decay: float, final: float) -> float:
    """What multiplies the peak learning rate at a step (0 is the first).

    Warm-up is linear over `warmup` steps, but never over more than a tenth of the run. Then
    `cosine` falls to `final` at the end (Loshchilov and Hutter 2017); `wsd` stays at the peak and falls linearly to
    `final` over the last `decay` of the run (Hu et al. 2024, MiniCPM, section 4); `constant` stays.
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    tail = max(1, round(decay * total))
    return 1.0 - (1 - final) * min(1.0, max(0.0, (step - (total - tail)) / tail))


def capped_schedule(optimizer: Optimizer, factor, lr: float) -> LambdaLR:
    """The schedule `lr * factor(step)` for every group, each bounded by its own lr_max."""

    def of(lr_max: float):
        return lambda step: min(lr * factor(step), lr_max) / lr

    return LambdaLR(optimizer, [of(group["lr_max"]) for group in optimizer.param_groups])


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], scaled: bool = False
) -> AdamW:
    """AdamW over `parameter_groups`; the fused kernel where all parameters are on a GPU, or on a CPU.

    scaled: gradients come multiplied by a scaler of float16, which a fused kernel would undo after they were clipped.
    """
    fused = not scaled and all(parameter.device.type in ("cuda", "cpu") for parameter in model.parameters())
    groups = parameter_groups(model, weight_decay=weight_decay, lr=lr)
    return AdamW(groups, lr=lr, betas=tuple(betas), fused=fused)
