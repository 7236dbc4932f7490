"""The routers of mixtures of experts in training: what is logged of them, and the bias that balances them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from hybridlm.layers.moe import MoE
from hybridlm.layers.router import Router, RouterRecord


def measures(record: RouterRecord) -> dict[str, Tensor]:
    """What is logged of a layer's router: how uneven it is, how sure, and what that costs."""
    values = {"overload": record.overload, "entropy": record.entropy, "balance_loss": record.balance}
    return {f"router/layer_{record.layer}_{name}": value.detach() for name, value in values.items()}


class Rebalancing:
    """Adds up the loads of a step, however many micro-batches it has, and then moves the biases against them."""

    def __init__(self) -> None:
        self.loads: dict[int, Tensor] = {}

    def add(self, records: Iterable[RouterRecord]) -> None:
        """The records of a micro-batch."""
        for record in records:
            self.loads[record.layer] = self.loads.get(record.layer, 0) + record.load

    def step(self, blocks: nn.ModuleList, everywhere: Callable[[Tensor], Tensor]) -> None:
        """Rebalance every mixture, once by what all places of its weights got. everywhere: the sum over devices."""
        routers: dict[Router, Tensor] = {}
        for layer, load in self.loads.items():
            mlp = blocks[layer].mlp
            if isinstance(mlp, MoE) and mlp.config.bias_rate:
                routers[mlp.router] = routers.get(mlp.router, 0) + load
        for router, load in routers.items():
            router.rebalance(everywhere(load))
        self.loads = {}
