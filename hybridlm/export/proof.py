"""Proof that an export is the model: both read the same tokens, in float32, and their logits are compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridlm.compose.build import build
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan
from hybridlm.errors import ExportError, UnsupportedError

LIMIT = 2e-5
"""The most that any logit may be off, in units of the RMS of all."""
ROWS, PROMPT, STEPS, PADS = 2, 24, 4, 5
LONGEST = 2048  # tokens that are read to get past a window


@dataclass(frozen=True)
class Proof:
    """What was compared: {prefill, step, padded: worst error of a logit over the RMS of all}, over so many tokens."""

    errors: Mapping[str, float]
    tokens: int
    limit: float = LIMIT

    @property
    def holds(self) -> bool:
        """Whether every error is within the limit; one that is no number is not."""
        return all(error <= self.limit for error in self.errors.values())

    def require(self, target: str, reader: str = "transformers") -> None:
        """ExportError unless it holds. reader: what read the export back."""
        if not self.holds:
            worst = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
            raise ExportError(
                f"{target}: what was written is not the model: {worst} of the logits' RMS, and {self.limit:.0e} is "
                f"allowed. It is a bug of hybridlm's, or of the {reader} that read it back; nothing was left behind"
            )


def prove(model: HybridLM, folder: Path, *, trust_remote_code: bool = False) -> Proof:
    """Load `folder` with transformers and compare it with the model, whose dtype and mode stay as they are.

    UnsupportedError: transformers is not installed. ExportError: the model's own logits are not finite, or transformers
    cannot run what is in the folder.
    """
    transformers = require_transformers()
    ours, tokens = in_float32(model), long_prompt(model)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(model.spec.vocab_size, (ROWS, tokens + STEPS), generator=drawn)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, :PADS] = False
    padded = torch.where(valid, ids, 0)
    with torch.no_grad():
        whole = ours(ids).logits
        if not whole.isfinite().all():
            raise ExportError("the model's own logits are not finite: there is nothing that an export could agree with")
        steps = _own_steps(ours, ids, tokens)
        wanted = {"prefill": whole, "step": steps, "padded": ours(padded, valid=valid).logits[valid]}
    with torch.no_grad(), _quiet(transformers), _told():
        theirs = opened(folder, trust_remote_code=trust_remote_code)
        found = {
            "prefill": _logits(theirs, input_ids=ids),
            "step": _stepped(theirs, ids, tokens),
            "padded": _logits(theirs, input_ids=padded, attention_mask=valid.long())[valid],
        }
    return Proof({name: worst(found[name], right) for name, right in wanted.items()}, tokens + STEPS)


@contextmanager
def _told() -> Iterator[None]:
    """What their code raises, as an ExportError."""
    try:
        yield
    except (ExportError, UnsupportedError):
        raise
    except Exception as error:  # whatever their code finds to say
        raise ExportError(f"transformers cannot run what was written: {type(error).__name__}: {error}") from error


def opened(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model that transformers makes of a folder, in float32, with plain attention, in evaluation mode."""
    transformers = require_transformers()
    how = {"dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": trust_remote_code}
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
    copy = build(model.spec, device="meta")
    weights = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy.eval()


def long_prompt(model: HybridLM) -> int:
    """Tokens that get past every window, if LONGEST do."""
    mixers = [part for layer in plan(model.spec).layers for part in layer.mixers]
    windows = [part.config.window for part in mixers if part.type == "sliding_window"]
    return min(LONGEST, max([PROMPT, *(window + 8 for window in windows)]))


def _logits(theirs: Any, **inputs: Any) -> Tensor:
    return theirs(**inputs, use_cache=False).logits.float()


def _stepped(theirs: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits of a prefill and then of single tokens with the cache."""
    out = theirs(input_ids=ids[:, :prompt], use_cache=True)
    logits, cache = [out.logits.float()], _cache(out)
    taken = inspect.signature(theirs.forward).parameters
    for t in range(prompt, ids.shape[1]):
        more = {} if "cache_params" in cache else {"attention_mask": torch.ones(len(ids), t + 1, dtype=torch.long)}
        if "position_ids" in taken:
            more["position_ids"] = torch.full((len(ids), 1), t)  # as in generate; without, Bamba begins at 0 again
        out = theirs(input_ids=ids[:, t : t + 1], use_cache=True, **more, **cache)
        logits.append(out.logits.float())
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
