"""The router of a mixture of experts: who is chosen, and what uneven choices cost."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hybridlm.layers import init
from hybridlm.layers.init import Streams

TINY = 1e-20  # in the sum of chosen sigmoids, which may all be 0


@dataclass(frozen=True)
class RouterRecord:
    """What a router did in one call, an entry of `Context.journal`. Pads do not count; without a token all is 0.

    balance:    scalar, the balance loss times its coefficient, through which gradients flow. In training the model
                adds it to the cross entropy.
    load:       (experts,) share of the tokens that chose each expert; the sum is top_k.
    importance: (experts,) mean over the tokens of each expert's share of the scores; the sum is 1.
    entropy:    scalar, mean over the tokens of the entropy of those shares, in nats: log(experts) is indifference.
    layer:      index of the layer in the stack, from 0; the model fills it in.
    """

    balance: Tensor
    load: Tensor
    importance: Tensor
    entropy: Tensor
    layer: int | None = None

    @property
    def overload(self) -> Tensor:
        """Load of the busiest expert over the mean load: 1 is even, experts / top_k the worst."""
        return self.load.max() / self.load.mean().clamp(min=TINY)


class Router(nn.Module):
    """Scores of every expert for every token, and the top_k of them. All of it in at least float32.

    bias (experts,): added to sigmoid scores when choosing, and for nothing else (Wang et al. 2024, arXiv:2408.15664,
    eq. 3). No gradient reaches it: a checkpoint brings it, or `rebalance` moves it. Softmax scores have none.
    """

    def __init__(self, config, d_model: int):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, d_model))
        self.register_buffer("bias", torch.empty(config.experts) if config.score == "sigmoid" else None)

    def reset_parameters(self, streams: Streams) -> None:
        """As a linear layer; no bias towards any expert."""
        init.normal(self.weight, (3 * self.weight.shape[1]) ** -0.5, streams("weight"))
        if self.bias is not None:
            self.bias.zero_()

    def forward(
        self, x: Float[Tensor, "*n d"]
    ) -> tuple[Int[Tensor, "*n k"], Float[Tensor, "*n k"], Float[Tensor, "*n e"]]:
        """x -> the chosen experts, their weights, and the scores of all. Of equal scores the lower number wins."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(wide), self.weight.to(wide))
        scores = logits.sigmoid() if self.config.score == "sigmoid" else logits.softmax(dim=-1)
        order = scores if self.bias is None else scores + self.bias
        chosen = order.detach().argsort(dim=-1, descending=True, stable=True)[..., : self.config.top_k]
        weights = scores.gather(-1, chosen)
        if self.config.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
        return chosen, weights * self.config.scale, scores

    def record(
        self, chosen: Int[Tensor, "*n k"], scores: Float[Tensor, "*n e"], valid: Bool[Tensor, "*n"] | None
    ) -> RouterRecord:
        """What the tokens that are valid chose.

        balance = coefficient * experts * sum_e load_e importance_e: Fedus et al. 2021 (arXiv:2101.03961), eq. 4, whose
        f_i here counts all top_k choices of a token, as in transformers: coefficient * top_k at even loads.
        """
        counted = torch.ones_like(chosen[..., 0]) if valid is None else valid
        shares = scores / (scores.sum(dim=-1, keepdim=True) + TINY)
        shares = torch.where(counted[..., None].bool(), shares, 0).flatten(0, -2)
        tokens = counted.sum().clamp(min=1)
        choices = counted[..., None].expand(chosen.shape).flatten().to(scores.dtype)
        load = scores.new_zeros(scores.shape[-1]).index_add(0, chosen.flatten(), choices) / tokens
        importance = shares.sum(dim=0) / tokens
        balance = self.config.balance * self.config.experts * (load * importance).sum()
        entropy = torch.special.entr(shares.detach()).sum() / tokens
        return RouterRecord(balance, load, importance.detach(), entropy)

    @torch.no_grad()
    def rebalance(self, load: Float[Tensor, "e"]) -> None:
        """Make overloaded experts less likely to be chosen, by bias_rate. Wang et al. 2024, algorithm 1."""
        self.bias.add_(self.config.bias_rate * (load.mean() - load).sign())
