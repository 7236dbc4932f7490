"""Proof that an export is the model: both read the same tokens, in float32, and their logits are compared.

Where rounding alone may be what keeps them apart, they are compared in float64 as well: there the mathematics either
agrees to many digits, or it is another one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from hybridlm.compose.build import build
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError, UnsupportedError

LIMIT = 2e-5
"""The most that any logit may be off, in units of the RMS of all."""
ROUNDED, EXACT = 1e-3, 1e-8
"""Where it is off by more than that, and by ROUNDED at most, float64 decides: there it may be off by EXACT."""
ROWS, PROMPT, STEPS, PADS = 2, 24, 4, 5
LONGEST = 2048  # tokens that are read to get past a window


@dataclass(frozen=True)
class Proof:
    """What was compared: {prefill, step, padded: worst error of a logit over the RMS of all}, over so many tokens.

    exact: the same in float64, which decided; empty where float32 did.
    """

    errors: Mapping[str, float]
    tokens: int
    limit: float = LIMIT
    exact: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every error is within its limit; one that is no number is not, nor are none at all."""
        if self.exact:
            return _within(self.errors, max(self.limit, ROUNDED)) and _within(self.exact, EXACT)
        return _within(self.errors, self.limit)

    def require(self, target: str, reader: str = "transformers") -> None:
        """ExportError unless it holds. reader: what read the export back."""
        if not self.holds:
            wide = f"; in float64 {said_of(self.exact)}, and {EXACT:.0e} is allowed" if self.exact else ""
            raise ExportError(
                f"{target}: what was written is not the model: {said_of(self.errors)} of the logits' RMS, and "
                f"{self.limit:.0e} is allowed{wide}. It is a bug of hybridlm's, or of the {reader} that read it back; "
                "nothing was left behind"
            )


def said_of(errors: Mapping[str, float]) -> str:
    """Errors in one line."""
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def _within(errors: Mapping[str, float], limit: float) -> bool:
    return bool(errors) and all(error <= limit for error in errors.values())


def prove(model: HybridLM, folder: Path, *, trust_remote_code: bool = False) -> Proof:
    """Load `folder` with transformers and compare it with the model, whose dtype and mode stay as they are.

    UnsupportedError: transformers is not installed. ExportError: the model's own logits are not finite, or transformers
    cannot run what is in the folder.
    """
    require_transformers()
    tokens = long_prompt(model)
    proof = Proof(_errors(model, folder, tokens, torch.float32, trust_remote_code), tokens + STEPS)
    if proof.holds or not _within(proof.errors, ROUNDED):
        return proof
    with in_float64():
        return replace(proof, exact=_errors(model, folder, tokens, torch.float64, trust_remote_code))


@torch.no_grad()
def _errors(
    model: HybridLM, folder: Path, tokens: int, dtype: torch.dtype, trust_remote_code: bool
) -> dict[str, float]:
    """{prefill, step, padded: the worst error} of both in a dtype."""
    ours, drawn = in_dtype(model, dtype), torch.Generator().manual_seed(0)
    ids = torch.randint(model.spec.vocab_size, (ROWS, tokens + STEPS), generator=drawn)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, :PADS] = False
    padded = torch.where(valid, ids, 0)
    steps = _own_steps(ours, ids, tokens)
    wanted = {"prefill": ours(ids).logits, "step": steps, "padded": ours(padded, valid=valid).logits[valid]}
    _require_answers(wanted.values())
    with _quiet(require_transformers()), _told():
        theirs = opened(folder, trust_remote_code=trust_remote_code, dtype=dtype)
        found = {
            "prefill": theirs(input_ids=ids, use_cache=False).logits,
            "step": _stepped(theirs, ids, tokens),
            "padded": theirs(input_ids=padded, attention_mask=valid.long(), use_cache=False).logits[valid],
        }
    return {name: worst(found[name].to(dtype), right) for name, right in wanted.items()}


def _require_answers(logits: Iterable[Tensor]) -> None:
    """ExportError where the model's own logits could not tell one export from another."""
    for some in logits:
        if not some.isfinite().all():
            raise ExportError("the model's own logits are not finite: there is nothing that an export could agree with")
        if not some.any():
            raise ExportError("the model's own logits are all 0, and so are those of many others: nothing is proved")


@contextmanager
def _told() -> Iterator[None]:
    """What their code raises, as an ExportError."""
    try:
        yield
    except (ExportError, UnsupportedError):
        raise
    except Exception as error:  # whatever their code finds to say
        raise ExportError(f"transformers cannot run what was written: {type(error).__name__}: {error}") from error


def opened(folder: Path, *, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The model that transformers makes of a folder, in a dtype, with plain attention, in evaluation mode."""
    transformers = require_transformers()
    how = {"dtype": dtype, "attn_implementation": "eager", "trust_remote_code": trust_remote_code}
    how["experts_implementation"] = "eager"  # its grouped products take no odd widths
    with _quiet(transformers):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
    faults = {name: found for name, found in report.items() if found}
    if faults:
        raise ExportError(f"{folder}: transformers did not find the weights it expects: {faults}")
    return model.eval()


def require_transformers() -> ModuleType:
    """The package. UnsupportedError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            "an export is proved by loading it with transformers, which is not installed: pip install 'hybridlm[hf]'"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without the advice that transformers prints on loading, and on the first call."""
    log = transformers.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def worst(found: Tensor, wanted: Tensor) -> float:
    """The largest error over the RMS of what is wanted; NaN counts as infinite."""
    error = ((found - wanted).abs().max() / wanted.square().mean().sqrt()).item()
    return error if error == error else float("inf")


def in_float32(model: HybridLM) -> HybridLM:
    """A copy on the CPU in float32, in evaluation mode."""
    return in_dtype(model, torch.float32)


def in_dtype(model: HybridLM, dtype: torch.dtype) -> HybridLM:
    """The same in another dtype."""
    copy = build(model.spec, device="meta")
    weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy.eval()


class _Float64(TorchFunctionMode):
    """Wherever code says float32, it is understood as float64."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args, kwargs = tree_map(lambda one: torch.float64 if one is torch.float32 else one, (args, kwargs or {}))
        return func(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 alone: models of transformers say float32 in their norms, softmaxes and decays."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def long_prompt(model: HybridLM) -> int:
    """Tokens that get past every window, if LONGEST do."""
    mixers = [part for layer in plan(model.spec).layers for part in layer.mixers]
    windows = [part.config.window for part in mixers if part.type == "sliding_window"]
    return min(LONGEST, max([PROMPT, *(window + 8 for window in windows)]))


def _stepped(theirs: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits of a prefill and then of single tokens with the cache."""
    out = theirs(input_ids=ids[:, :prompt], use_cache=True)
    logits, cache = [out.logits], _cache(out)
    taken = inspect.signature(theirs.forward).parameters
    for t in range(prompt, ids.shape[1]):
        more = {} if "cache_params" in cache else {"attention_mask": torch.ones(len(ids), t + 1, dtype=torch.long)}
        if "position_ids" in taken:
            more["position_ids"] = torch.full((len(ids), 1), t)  # as in generate; without, Bamba begins at 0 again
        out = theirs(input_ids=ids[:, t : t + 1], use_cache=True, **more, **cache)
        logits.append(out.logits)
        cache = _cache(out)
    return torch.cat(logits, dim=1)


def _own_steps(ours: HybridLM, ids: Tensor, prompt: int) -> Tensor:
    """The same of ours: what rounding does to a model in steps is the model's, and not the export's."""
    pieces = (ids[:, :prompt], *ids[:, prompt:].split(1, dim=1))
    state, logits = ours.init_state(len(ids), max_length=ids.shape[1]), []
    for piece in pieces:
        out = ours(piece, state)
        state = out.state
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def _cache(out: Any) -> dict[str, Any]:
    """The cache as the next call takes it: its name differs between families."""
    names = ("past_key_values", "cache_params")
    return {name: out[name] for name in names if name in out and out[name] is not None}
