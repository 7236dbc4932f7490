"""What a mixture of experts tells of a call: who was chosen, and what uneven choices cost."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RouterRecord:
    """One entry of a `Context.journal`. Tokens at pads do not count; without a token every number is 0.

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
        return self.load.max() / self.load.mean().clamp(min=1e-12)
