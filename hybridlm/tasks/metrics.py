"""How well a task is answered: the share of right answers, of samples with no wrong one, and what guessing gets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from hybridlm.compose.model import Output
from hybridlm.compose.spec import ModelSpec
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.tasks.task import Task
from hybridlm.train.metrics import SCORES, Score, TokenScore


class Share(Metric):
    """How many of those that were counted are right."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor) -> None:
        """right: bool, of any shape."""
        self.right += right.sum()
        self.count += right.numel()

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        return self.right / self.count


class TaskScore(Score):
    """Loss over all that is asked and, of a task of tokens, accuracy and solved; beside them what guessing gets.

    accuracy: share of the asked positions with the right answer, which is none where a logit is NaN.
    solved: share of the samples without a wrong one.
    guess: of a task of tokens beside accuracy, of one of numbers beside loss, the squared error; see Task.guess.
    """

    reads_answers = True

    def __init__(self, spec: ModelSpec, task: Task) -> None:
        nn.Module.__init__(self)
        plain = SCORES[spec.output.type]
        self.unit, self.answer = plain.unit, plain.answer
        self.loss, self.guess = TokenScore(), task.guess()
        if task.kind == "tokens":
            self.accuracy, self.solved = Share(), Share()

    def update(self, out: Output, targets: Tensor) -> None:
        """out.logits (b, t, v) with targets (b, t), or (b, t, outputs) both; where nothing is asked it is no matter."""
        self.add(out.logits[asked(targets)], targets)

    def add(self, answers: Tensor, targets: Tensor) -> None:
        """answers: (n, v) logits at the asked positions of targets (b, t), row by row; of numbers (n, outputs)."""
        where = asked(targets)
        right = targets[where]
        if targets.is_floating_point():
            self.loss.update(squared_error(answers, right), right)
            return
        wrong = (answers.argmax(dim=-1) != right) | answers.isnan().any(dim=-1)  # the first NaN would be the largest
        self.loss.update(F.cross_entropy(answers.float(), right), right)
        self.accuracy.update(~wrong)
        self.solved.update(~where.masked_scatter(where, wrong).any(dim=1)[where.any(dim=1)])

    def measures(self) -> dict[str, Tensor]:
        found = {name: metric.compute().float() for name, metric in self.named_children()}
        return found | {"guess": torch.tensor(self.guess, device=found["loss"].device)}


def asked(targets: Tensor) -> Tensor:
    """targets (b, t), or (b, t, outputs) -> (b, t) bool: where there is something to answer."""
    return ~targets.isnan().all(dim=-1) if targets.is_floating_point() else targets != IGNORED


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """() mean over the targets that are not NaN."""
    real = ~targets.isnan()
    return F.mse_loss(values[real].float(), targets[real].float())
