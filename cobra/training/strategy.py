"""The training engine: set-up, the token-weighted step, and the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cobra.models.load import cast
from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch, CollateOrPass, ErrorsAsValues, count_targets, grouped, mark_skipped, to_device
from cobra.training.checkpointing import save_checkpoint
from cobra.training.metrics import Metrics
from cobra.training.optimizer import build_optimizer, clip_gradients
from cobra.training.progress import StepProgress
from cobra.training.schedule import StepPlan, check_batches, check_schedule, learning_rate, plan_steps
from cobra.training.sharding import check_strategy, shard
from cobra.training.validation import Validation
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.distributed import World
from cobra.util.errors import UserError


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step saw, the same on every process.

    loss: Mean cross-entropy over all labelled tokens of the global batch.
    grad_norm: Global norm of the gradient before clipping.
    tokens: Labelled tokens of the global batch.
    """

    loss: float
    grad_norm: float
    tokens: int


@dataclass(frozen=True)
class Hyperparameters:
    """What the optimisation of one stage takes; the fields of ModelConfig without their stage's prefix."""

    epochs: int
    max_steps: int | None
    global_batch_size: int
    per_device_batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    lr_scheduler_type: str
    warmup_ratio: float


def check_hyperparameters(values: Hyperparameters, prefix: str) -> None:
    """Raise a UserError, naming the flag, where a setting makes no sense; `prefix` is `align` or `finetune`."""
    check_schedule(values.lr_scheduler_type)
    checks = {
        "epochs": (values.epochs, values.epochs >= 1, "at least 1"),
        "max_steps": (values.max_steps, values.max_steps is None or values.max_steps >= 1, "at least 1, or null"),
        "learning_rate": (values.learning_rate, values.learning_rate > 0, "above 0"),
        "weight_decay": (values.weight_decay, values.weight_decay >= 0, "at least 0"),
        "max_grad_norm": (values.max_grad_norm, values.max_grad_norm > 0, "above 0"),
        "warmup_ratio": (values.warmup_ratio, 0 <= values.warmup_ratio <= 1, "in [0, 1]"),
    }
    for name, (value, good, expected) in checks.items():
        if not good:
            raise UserError(f"--model.{prefix}_{name} is {value} and must be {expected}")


class TrainStrategy:
    """Trains a model on the processes of a :class:`World`, sharded or whole.

    Attributes:
        vlm: The model, sharded in place by :meth:`run_setup`.
        rate: Learning rate by (step, total steps); a pure function that may be replaced before training.
        optimizer: Built by :meth:`run_setup`.
        global_step: Optimiser steps done.
        skipped_rows: Rows that were met with a bad image, over all processes; known at the end of the training.
    """

    def __init__(
        self,
        vlm: CobraVLM,
        world: World,
        hyperparameters: Hyperparameters,
        train_strategy: str = "fsdp-full-shard",
        enable_gradient_checkpointing: bool = True,
        enable_mixed_precision_training: bool = True,
        reduce_in_full_precision: bool = False,
        flag_prefix: str = "finetune",
    ) -> None:
        """Check the configuration; nothing is moved or sharded yet.

        Args:
            vlm: The model, with `freeze_backbones` called for its stage.
            world: The processes.
            hyperparameters: Of the stage.
            train_strategy: See :func:`cobra.training.sharding.shard`.
            enable_gradient_checkpointing: Recompute each Mamba block in the backward pass.
            enable_mixed_precision_training: Compute in bf16 on CUDA; other devices compute in fp32.
            reduce_in_full_precision: Average gradients in fp32 instead of bf16, with mixed precision.
            flag_prefix: `align` or `finetune`, to name flags in errors.
        """
        check_strategy(train_strategy)
        check_hyperparameters(hyperparameters, flag_prefix)
        check_batches(hyperparameters.global_batch_size, hyperparameters.per_device_batch_size, world.size, flag_prefix)
        self.vlm = vlm
        self.world = world
        self.hyperparameters = hyperparameters
        self.train_strategy = train_strategy
        self.enable_gradient_checkpointing = enable_gradient_checkpointing
        self.mixed_precision = enable_mixed_precision_training and world.device.type == "cuda"
        # FSDP2 would also add up the gradients of several passes in the dtype in which it reduces them.
        single_pass = hyperparameters.global_batch_size == hyperparameters.per_device_batch_size * world.size
        rounded = self.mixed_precision and not reduce_in_full_precision and single_pass
        self.reduce_dtype = torch.bfloat16 if rounded else None
        self.rate: Callable[[int, int], float] = self._scheduled_rate
        self.optimizer: torch.optim.Optimizer
        self.global_step = 0
        self.skipped_rows = 0

    def _scheduled_rate(self, step: int, total_steps: int) -> float:
        return learning_rate(step, total_steps, self.hyperparameters.learning_rate, self.hyperparameters.warmup_ratio)

    def run_setup(self) -> None:
        """Move the model to its device, shard it and build the optimiser.

        What trains is held in fp32, also on CUDA, where it is computed in bf16; what is frozen is held in bf16 there.
        """
        for key, module in self.vlm.named_children():
            # What a checkpoint will hold stays in fp32 too, so that saving does not round it.
            kept = key in self.vlm.checkpoint_modules
            cast(module, torch.bfloat16 if self.mixed_precision and not kept else torch.float32)
        self.vlm.llm_backbone.llm.gradient_checkpointing = self.enable_gradient_checkpointing
        self.vlm.to(self.world.device)
        shard(self.vlm, self.train_strategy, self.world, self.reduce_dtype)
        hyperparameters = self.hyperparameters
        self.optimizer = build_optimizer(self.vlm, hyperparameters.learning_rate, hyperparameters.weight_decay)
        self.vlm.train()

    def train_step(self, batches: list[Batch], rate: float) -> StepResult:
        """Take one optimiser step on this process's share of a global batch.

        The loss is the mean over the labelled tokens of the whole global batch: their count is summed over processes
        and forward passes first, and every pass then contributes the sum of its losses over that count. So the result
        does not depend on how the rows are spread.

        Args:
            batches: Collated batches of this process, one a forward pass; moved to the device here.
            rate: Learning rate.

        Raises:
            UserError: The loss or the gradient is not finite.
        """
        batches = [to_device(batch, self.world.device) for batch in batches]
        counts = torch.stack([count_targets(batch["labels"], batch["multimodal_indices"]) for batch in batches])
        tokens = self.world.sum(counts.sum())
        total = torch.zeros((), device=self.world.device)
        for index, batch in enumerate(batches):
            if self.world.size > 1:
                self.vlm.set_requires_gradient_sync(index == len(batches) - 1)  # type: ignore[operator]
            # Without autocast's cache: it would keep a bf16 copy of every block until the pass ends.
            kind = self.world.device.type
            with torch.autocast(kind, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False):
                loss = self.vlm(**batch, loss_reduction="sum", return_logits=False).loss / tokens.clamp(min=1)
            # FSDP averages over processes, and the loss is a sum over them.
            (loss * self.world.size).backward()
            total += loss.detach().float()
        grad_norm = clip_gradients(self.vlm.parameters(), self.hyperparameters.max_grad_norm)
        mean = self.world.sum(total)
        if not bool(torch.isfinite(mean + grad_norm.to(mean.device))):
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(
                f"the loss ({mean.item()}) or the gradient ({grad_norm.item()}) of step {self.global_step + 1} is not "
                "a finite number; nothing was updated. Use a lower learning rate, or look for broken rows in the data"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1
        return StepResult(mean.item(), grad_norm.item(), int(tokens.item()))

    def plan(self, sampler: SplitModalitySampler) -> StepPlan:
        """Plan the run from the sampler's real number of batches."""
        values = self.hyperparameters
        return plan_steps(
            values.global_batch_size,
            values.per_device_batch_size,
            self.world.size,
            sampler.batches_per_epoch,
            values.epochs,
            values.max_steps,
        )

    def run_training(
        self,
        dataset: Dataset,
        collator: Callable[[Any], Batch],
        modality_lengths: list[tuple[bool, int]],
        run_dir: Path,
        metrics: Metrics | None,
        seed: int = 7,
        num_workers: int = 0,
        validation: Validation | None = None,
    ) -> StepResult:
        """Train over the planned steps; save at the end of every epoch and of the run.

        Args:
            dataset: Rows.
            collator: From rows to a batch.
            modality_lengths: (has an image, length) of every row.
            run_dir: Where checkpoints go.
            metrics: On the main process; None elsewhere.
            seed: Of the order of rows.
            num_workers: Processes that read rows, for each training process.
            validation: Held-out rows; the loss on them is taken at the end of every epoch and of the run.

        Returns:
            The result of the last step.
        """
        values = self.hyperparameters
        sampler = SplitModalitySampler(
            dataset, modality_lengths, values.global_batch_size, self.world.size, self.world.rank, seed
        )
        plan = self.plan(sampler)
        loader = DataLoader(
            ErrorsAsValues(dataset),
            batch_size=values.per_device_batch_size,
            sampler=sampler,
            collate_fn=CollateOrPass(collator),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.world.device.type == "cuda",
        )
        skipped = torch.zeros(len(modality_lengths), dtype=torch.int32)
        with StepProgress(plan.total_steps, enabled=self.world.is_main) as progress:
            for epoch in range(plan.epochs):
                sampler.set_epoch(epoch)
                for batches in grouped(loader, plan.accumulation_steps):
                    mark_skipped(batches, skipped)
                    rate = self.rate(self.global_step, plan.total_steps)
                    result = self.train_step(batches, rate)
                    ends = self.global_step in (plan.total_steps, (epoch + 1) * plan.batches_per_epoch)
                    held_out = self._validate(validation, metrics, progress) if ends else None
                    if metrics is not None:
                        metrics.commit(self.global_step, result.loss, rate, result.grad_norm, result.tokens, held_out)
                    progress.advance(self.global_step, result.loss, rate, result.grad_norm)
                    if self.global_step == plan.total_steps:
                        break
                save_checkpoint(self.vlm, run_dir, self.world, self.global_step, epoch + 1, result.loss)
        self.skipped_rows = int(self.world.sum(skipped.to(self.world.device)).count_nonzero())
        return result

    def _validate(self, validation: Validation | None, metrics: Metrics | None, progress: StepProgress) -> float | None:
        """Take the loss on the held-out rows, if there are any."""
        if validation is None:
            return None
        if metrics is not None:
            metrics.stop_clock()
        loss = validation.loss(self.vlm, self.world, self.mixed_precision)
        progress.say(f"step {self.global_step}: loss on held-out rows {loss:.4f}")
        return loss
