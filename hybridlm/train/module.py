"""LitHybridLM: a hybrid model as a LightningModule. The model computes its loss; this file only trains it."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from hybridlm.compose.build import build
from hybridlm.compose.compiled import compile as compile_blocks
from hybridlm.compose.model import Output
from hybridlm.compose.spec import meaning
from hybridlm.errors import CheckpointError, SpecError
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.resources import find_config
from hybridlm.train.callbacks import first_nonfinite, nonfinite
from hybridlm.train.data import TextData
from hybridlm.train.graphs import NonFiniteError, TrainStep, plain_groups, require_graph
from hybridlm.train.metrics import SCORES, bits_per_byte, own_loss
from hybridlm.train.optim import Schedule, adamw, capped_schedule, schedule_factor
from hybridlm.train.routers import Rebalancing, measures
from hybridlm.train.samples import Batch, StepData, inputs_of


class LitHybridLM(pl.LightningModule):
    """Trains the model of a spec with AdamW.

    Args:
        spec: path of a model's YAML file, or the name of a shipped one, such as tiny (see configs/models).
        lr: peak learning rate.
        weight_decay: of matrices; norms, biases, embeddings and state-space parameters do not decay.
        betas: of AdamW.
        schedule: "cosine", "wsd" (warm-up, stable, decay) or "constant".
        warmup: steps of linear warm-up, at most a tenth of the run.
        decay: share of the run in which wsd falls.
        final_lr: where the schedule ends, as a share of lr.
        seed: of the initial weights.
        compile: compile the blocks with torch.compile.
        checkpoint: activation checkpointing: keep what goes into each block, and compute the rest again for gradients.
        cuda_graph: capture the whole step in a CUDA graph after the first few: for steps that are bound by launches.
            One GPU, no accumulation of gradients, batches of one shape.

    A batch is what TextData, SignalData or TaskData gives. Raises SpecError (spec, settings), DataError (data that the
    model cannot read) and CheckpointError (a checkpoint of another spec, with every difference at once).
    """

    def __init__(
        self,
        spec: str,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: Schedule = "cosine",
        warmup: int = 100,
        decay: float = 0.2,
        final_lr: float = 0.1,
        seed: int = 0,
        compile: bool = False,
        checkpoint: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        _check(lr=lr, weight_decay=weight_decay, betas=betas, warmup=warmup, decay=decay, final_lr=final_lr)
        self.spec_path = str(find_config(spec, "models"))
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.schedule = partial(schedule_factor, schedule=schedule, warmup=warmup, decay=decay, final=final_lr)
        self.model = build(self.spec_path, seed=seed)
        self.score = SCORES[self.model.spec.output.type](self.model.spec)
        self.rebalancing = Rebalancing()
        self.compiled, self.cuda_graph = compile, cuda_graph
        self.model.checkpoint_blocks(int(checkpoint))
        if compile:
            compile_blocks(self.model)

    def setup(self, stage: str) -> None:
        """Check that model and data go together, and the step and the trainer, before anything is read."""
        if self.cuda_graph and stage == "fit":
            _require_graph(self.trainer)
        data = self.trainer.datamodule
        if isinstance(data, StepData):
            data.require(self.model.spec, self.spec_path)
            self.score = data.score(self.model.spec)

    @property
    def bytes_per_token(self) -> float | None:
        """Of the data, if it says so."""
        data = self.trainer.datamodule
        return data.bytes_per_token if isinstance(data, TextData) else None

    def read(self, batch: Batch) -> Output:
        """The model's losses on the batch."""
        return self.model(inputs_of(batch), **_marks(batch), targets=batch["targets"])

    def answer(self, batch: Batch) -> Output:
        """The model's logits, or numbers, on the batch."""
        return self.model(inputs_of(batch), **_marks(batch))

    def loss(self, batch: Batch) -> Tensor:
        """What training minimises: the head's own mean over the batch's targets and, in training, balance losses."""
        return self.read(batch).loss

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One micro-batch. Logs train_loss and train_bpb, of the head's own loss alone; lr; what the routers did."""
        out = self._captured(batch) if self.cuda_graph else self.read(batch)
        own = own_loss(out).detach()
        self.log("train_loss", own, prog_bar=True)
        if self.bytes_per_token is not None:
            self.log("train_bpb", bits_per_byte(own, self.bytes_per_token), prog_bar=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        for record in out.router:
            self.log_dict(measures(record))
        self.rebalancing.add(out.router)
        return {"loss": out.loss, self.model.readout.measure: own}

    @cached_property
    def whole_step(self) -> TrainStep:
        """The step that `cuda_graph` asks for: forward, backward, clipping and optimiser."""
        mixed = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        optimizer, clip = self.optimizers(use_pl_optimizer=False), self.trainer.gradient_clip_val
        return TrainStep(self.model, optimizer, clip=clip, autocast=mixed, graph=True)

    def _captured(self, batch: Batch) -> Output:
        try:
            return self.whole_step({"ids": inputs_of(batch), **_marks(batch), "targets": batch["targets"]})
        except NonFiniteError as error:
            where = first_nonfinite(self.trainer, self, error.batch or batch)
            raise nonfinite(self.trainer, f"the loss or its gradient is no number. {where}", error.ago) from None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's part of the step, unless `whole_step` has taken all of it."""
        if not self.cuda_graph:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The step, all of its micro-batches, and then what it says of the routers' biases."""
        if self.cuda_graph:
            optimizer_closure()  # in which the captured optimiser has stepped, too
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.rebalancing.step(self.model.blocks, partial(self.trainer.strategy.reduce, reduce_op="sum"))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds to the score, in which every target weighs the same."""
        out = self.answer(batch) if self.score.reads_answers else self.read(batch)
        self.score.update(out, self._counted(batch))

    def _counted(self, batch: Batch) -> Tensor:
        """The targets, with none at pads."""
        targets, valid = batch["targets"], batch.get("valid")
        if valid is None:
            return targets
        real = valid if self.model.spec.output.pool == "none" else valid.any(dim=1)
        if targets.is_floating_point():
            return targets.masked_fill(~real[..., None], torch.nan)
        return targets.masked_fill(~real, IGNORED)

    def on_validation_epoch_end(self) -> None:
        """Logs val_loss and what else the score has: val_ppl and val_bpb, or val_accuracy, val_solved, val_guess."""
        self._log_score("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As validation_step."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As on_validation_epoch_end, under the names test_*."""
        self._log_score("test")

    def _log_score(self, stage: str) -> None:
        found = self.score.measures()
        self.score.reset()
        if self.bytes_per_token is not None:
            found["bpb"] = bits_per_byte(found["loss"], self.bytes_per_token)
        self.log_dict({f"{stage}_{name}": value for name, value in found.items()}, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(b, t) NLL in nats of each target, 0 where there is none; of another head its answers."""
        logits = self.answer(batch).logits
        if self.model.spec.head != "lm":
            return logits
        return torch.nn.functional.cross_entropy(
            logits.float().mT, batch["targets"], ignore_index=IGNORED, reduction="none"
        )

    def configure_optimizers(self) -> dict:
        """AdamW and its schedule, which counts optimiser steps."""
        total = self.trainer.max_steps
        if total < 1:
            raise SpecError("trainer.max_steps: training is counted in steps; set it, for example to 2000")
        scaled = self.trainer.precision == "16-mixed"
        optimizer = adamw(self.model, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, scaled=scaled)
        scheduler = capped_schedule(optimizer, partial(self.schedule, total=total), self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's, which in mixed precision refuses a fused optimiser; bf16 scales nothing that it could undo."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            how = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, how)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The resolved spec goes into every checkpoint."""
        checkpoint["spec"] = self.model.spec.to_dict()
        if self.cuda_graph:
            self.whole_step.check()
            for state in checkpoint["optimizer_states"]:
                plain_groups(state)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse a checkpoint of another model, naming every difference."""
        require_same_spec(checkpoint.get("spec", {}), self, _shapes(checkpoint["state_dict"]))


def _marks(batch: Batch) -> dict[str, Tensor]:
    """What a batch says of its tokens, besides what they are."""
    return {name: batch[name] for name in ("valid", "segment_ids") if name in batch}


def _require_graph(trainer: pl.Trainer) -> None:
    """SpecError: what keeps a run's step from being captured whole."""
    require_graph(trainer.strategy.root_device, fused=True)
    rules = {
        "accumulate_grad_batches": (trainer.accumulate_grad_batches, 1),
        "devices": (trainer.world_size, 1),
        "gradient_clip_algorithm": (trainer.gradient_clip_algorithm or "norm", "norm"),
    }
    for name, (value, only) in rules.items():
        if value != only:
            raise SpecError(f"model.cuda_graph captures one whole step: trainer.{name} must be {only}, not {value}")
    if trainer.precision == "16-mixed":
        raise SpecError("model.cuda_graph: 16-mixed scales the loss between steps; use bf16-mixed")


def require_same_spec(spec: dict, module: LitHybridLM, shapes: dict[str, object] | None = None) -> None:
    """CheckpointError, with every difference, unless a checkpoint's spec (and shapes, if given) are the module's."""
    differences = _differences(_flat(meaning(spec)), _flat(meaning(module.model.spec.to_dict())))
    if shapes is not None:
        differences += _differences(shapes, _shapes(module.state_dict()))
    if differences:
        listed = "\n  ".join(differences)
        raise CheckpointError(f"the checkpoint is of another model than {module.spec_path}:\n  {listed}")


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Nested dicts and lists -> {"a.b.0": leaf}."""
    if isinstance(value, dict) and value:
        items = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)) and value:
        items = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        return {path: value}
    flat: dict[str, object] = {}
    for key, entry in items:
        flat.update(_flat(entry, f"{path}.{key}" if path else key))
    return flat


def _shapes(state_dict: dict) -> dict[str, object]:
    return {name: tuple(t.shape) for name, t in state_dict.items() if isinstance(t, Tensor)}


def _differences(theirs: dict[str, object], ours: dict[str, object]) -> list[str]:
    def say(entries: dict[str, object], key: str) -> str:
        return repr(entries[key]) if key in entries else "absent"

    keys = dict.fromkeys([*theirs, *ours])
    return [
        f"{key}: {say(theirs, key)} in the checkpoint, {say(ours, key)} here"
        for key in keys
        if key not in theirs or key not in ours or theirs[key] != ours[key]
    ]


def _check(
    *, lr: float, weight_decay: float, betas: tuple[float, float], warmup: int, decay: float, final_lr: float
) -> None:
    rules = {
        "lr": (lr, 0 < lr < 10, "between 0 and 10"),
        "weight_decay": (weight_decay, 0 <= weight_decay < 10, "0 or more, below 10"),
        "betas": (betas, all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
        "warmup": (warmup, warmup >= 0, "0 or more"),
        "decay": (decay, 0 < decay <= 1, "a share of the run, above 0 and at most 1"),
        "final_lr": (final_lr, 0 <= final_lr <= 1, "a share of lr, from 0 to 1"),
    }
    for name, (value, legal, rule) in rules.items():
        if not legal:
            raise SpecError(f"model.{name}: {value!r}; it must be {rule}")
