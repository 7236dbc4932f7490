"""The model that all contenders build: its spec for hybridlm, its cost, its weights, and the truth about its logits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import hybridlm as hl
from hybridlm.compose.build import as_spec
from hybridlm.compose.cost import ModelCost, keeps_keys, stack_cost
from hybridlm.compose.plan import plan
from hybridlm.ops.backend import use

EPS = 1e-5
EXPAND, CONV = 2, 4


@dataclass(frozen=True)
class Architecture:
    """A stack without biases, embeddings tied. heads of attention: d_model / head_dim. mlp, rope: of all layers."""

    pattern: str = "(MMMA)12"
    d_model: int = 1024
    d_state: int = 128
    head_dim: int = 64
    vocab_size: int = 50304
    mlp: str = "none"
    rope: bool = False

    @classmethod
    def of(cls, args: Namespace) -> Architecture:
        """As the command line says."""
        return cls(args.pattern, args.d_model, args.d_state, args.head_dim, args.vocab_size)

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return self.d_model // self.head_dim

    @property
    def ssm_heads(self) -> int:
        """Heads of Mamba-2."""
        return EXPAND * self.d_model // self.head_dim

    @cached_property
    def spec(self) -> dict:
        """What `hl.build` takes."""
        mamba2 = {
            "type": "mamba2",
            "d_state": self.d_state,
            "head_dim": self.head_dim,
            "expand": EXPAND,
            "d_conv": CONV,
        }
        attention = {"type": "attention", "heads": self.heads, "head_dim": self.head_dim, "rope": self.rope}
        return {
            "pattern": self.pattern,
            "d_model": self.d_model,
            "vocab_size": self.vocab_size,
            "mlp": self.mlp,
            "norm_eps": EPS,
            "tie_embeddings": True,
            "blocks": {"M": {"mixer": mamba2}, "A": {"mixer": attention}, "m": {"mixer": {"type": "mamba"}}},
        }

    @cached_property
    def cost(self) -> ModelCost:
        """What hybridlm says that it costs."""
        return stack_cost(plan(as_spec(self.spec)))

    @cached_property
    def types(self) -> list[str]:
        """The registry name of each layer's mixer, from the bottom up."""
        return ["|".join(part.type for part in layer.plan.mixers) for layer in self.cost.layers]

    # ------------------------------------------------------------------------------------------- what it must take
    def forward_flops(self, tokens: int, logits: int | None = None) -> float:
        """Of a call on one row: matrix products alone, attention over no more than the causal half.

        logits: tokens whose logits are asked for; all by default.
        """
        flops = self.cost.forward(tokens).matmul - self._unseen(tokens)
        spared = 0 if logits is None else tokens - logits
        return flops - (self.cost.head.forward(spared, 0).matmul if spared else 0)

    def _unseen(self, tokens: int) -> float:
        """FLOPs on pairs in the future: half of what grows with the square of the length."""
        pairs = 0.0
        for layer in self.cost.layers:
            for mixer in filter(keeps_keys, layer.mixers):
                once, twice = (mixer.forward(n * tokens, 0).matmul for n in (1, 2))
                pairs += (twice - 2 * once) / 2
        return pairs / 2

    def step_bytes(self) -> float:
        """Of a training step: AdamW reads gradient, weight and two moments and writes three of them, in float32;
        the weights are read forward and backward, and the gradients written."""
        return self.cost.parameters * 4 * (7 + 2 + 1)

    def token_bytes(self, context: int, batch: int, dtype: torch.dtype) -> float:
        """Of one token a row: all weights, keys and values, and the recurrent state read and written."""
        state = self.cost.state(context, dtype, batch)
        return self.cost.parameters * dtype.itemsize + state.kv + 2 * state.ssm

    # ------------------------------------------------------------------------------------------------- the weights
    def weights(self, device: str, seed: int = 0) -> dict[str, Tensor]:
        """float32 weights under hybridlm's names, which every contender gets."""
        return hl.build(self.spec, device=device, seed=seed).state_dict()

    def ours(self, weights: dict[str, Tensor], device: str, dtype: torch.dtype) -> hl.HybridLM:
        """hybridlm's model with these weights."""
        model = hl.build(self.spec, device="meta", dtype=dtype).to_empty(device=device)
        model.load_state_dict(weights)
        return model

    @torch.no_grad()
    def truth(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """(t, v) logits of the row of tokens ids (t,) in float64 on plain PyTorch."""
        model = self.ours(weights, str(ids.device), torch.float64).eval()
        with use("reference"):
            return model(ids[None]).logits[0]


def add_options(parser: ArgumentParser, **defaults) -> None:
    """--pattern and the sizes."""
    known = Architecture(**defaults)
    parser.add_argument("--pattern", default=known.pattern, help=f"layers; default {known.pattern}")
    for name in ("d_model", "d_state", "head_dim", "vocab_size"):
        default = getattr(known, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")


def relative(value: Tensor, truth: Tensor) -> float:
    """RMS of the difference over the RMS of the truth."""
    value, truth = value.double(), truth.double()
    return ((value - truth).square().mean().sqrt() / truth.square().mean().sqrt()).item()
