"""The training engine: set-up and the token-weighted step; the loop over steps is in cobra.training.loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cobra.models.load import cast
from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch, count_targets, to_device
from cobra.training.check_run import check_optimisation
from cobra.training.config import Hyperparameters
from cobra.training.objective import NextToken, Objective
from cobra.training.optimizer import build_optimizer, clip_gradients
from cobra.training.schedule import StepPlan, learning_rate, plan_steps
from cobra.training.sharding import shard
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.distributed import World
from cobra.util.torch_utils import bf16_autocast


@dataclass(frozen=True)
class StepResult:
    """Numbers of one optimiser step, the same on every process.

    loss: Mean over the global batch, by the weights of the objective.
    grad_norm: Global norm of the gradient before clipping.
    tokens: Labelled tokens of the global batch.
    skipped: True where nothing was changed, because the loss or the gradient was not finite.
    images: Rows with an image.
    positions: Patches and tokens that the language model has read, padding left out.
    """

    loss: float
    grad_norm: float
    tokens: int
    skipped: bool = False
    images: int = 0
    positions: int = 0

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the result that a file holds, as `asdict` gives it.

        Raises:
            ValueError: It is of another form.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        for name, kind in kinds.items():
            value: Any = values.get(name)
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"its {name} is {value!r}")
        return cls(**{name: values[name] for name in kinds})


class TrainStrategy:
    """Trains a model on the processes of a :class:`World`, sharded or whole.

    Attributes:
        vlm: The model, sharded in place by :meth:`run_setup`.
        objective: Weight and loss of a batch.
        rate: Learning rate by (step, total steps); a pure function that may be replaced before training.
        optimizer: Built by :meth:`run_setup`.
        global_step: Steps done, skipped ones too.
        tokens: Labelled tokens that have been trained on.
        skipped_steps: Steps that changed nothing.
        skipped_in_a_row: Those among them that no other step has followed.
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
        sharding_group_size: int | None = None,
        offload_optimizer: bool = False,
        objective: Objective | None = None,
        recompute: str = "all",
    ) -> None:
        """Check the configuration; nothing is moved or sharded yet.

        Args:
            vlm: The model, with `freeze_backbones` called for its stage.
            world: The processes.
            hyperparameters: Settings of the stage's optimisation.
            train_strategy: See :func:`cobra.training.sharding.shard`.
            enable_gradient_checkpointing: Recompute each Mamba block in the backward pass.
            enable_mixed_precision_training: Compute in bf16 on CUDA; other devices compute in fp32.
            reduce_in_full_precision: Average gradients in fp32 instead of bf16, with mixed precision.
            flag_prefix: `align` or `finetune`, to name flags in errors.
            sharding_group_size: Processes that share one copy of the model; None is all of them.
            offload_optimizer: Keep the optimiser's state in main memory; for a single process.
            objective: Objective of training; None is next-token cross-entropy.
            recompute: With gradient checkpointing, the part of a block that is recomputed, see
                :data:`cobra.models.mamba.recompute.POLICIES`.
        """
        check_optimisation(hyperparameters, train_strategy, world.size, sharding_group_size, flag_prefix)
        self.vlm, self.world, self.hyperparameters = vlm, world, hyperparameters
        self.objective = objective or NextToken()
        self.train_strategy = train_strategy
        self.sharding_group_size = sharding_group_size
        self.offload_optimizer = offload_optimizer
        self.enable_gradient_checkpointing, self.recompute = enable_gradient_checkpointing, recompute
        self.mixed_precision = enable_mixed_precision_training and world.device.type == "cuda"
        # FSDP2 would also add up the gradients of several passes in the dtype in which it reduces them.
        single_pass = hyperparameters.global_batch_size == hyperparameters.per_device_batch_size * world.size
        rounded = self.mixed_precision and not reduce_in_full_precision and single_pass
        self.reduce_dtype = torch.bfloat16 if rounded else None
        self.rate: Callable[[int, int], float] = self._scheduled_rate
        self.optimizer: torch.optim.Optimizer
        self.global_step, self.tokens = 0, 0
        self.skipped_steps, self.skipped_in_a_row, self.skipped_rows = 0, 0, 0

    def _scheduled_rate(self, step: int, total_steps: int) -> float:
        return learning_rate(step, total_steps, self.hyperparameters.learning_rate, self.hyperparameters.warmup_ratio)

    def run_setup(self) -> None:
        """Move the model to its device, shard it and build the optimiser.

        What trains is held in fp32, also on CUDA, where it is computed in bf16, and gathered so from other processes;
        what is frozen is held in bf16 there.
        """
        for key, module in self.vlm.named_children():
            # What a checkpoint will hold stays in fp32 too, so that saving does not round it.
            kept = key in self.vlm.checkpoint_modules
            cast(module, torch.bfloat16 if self.mixed_precision and not kept else torch.float32)
        llm = self.vlm.llm_backbone.llm
        llm.gradient_checkpointing, llm.recompute = self.enable_gradient_checkpointing, self.recompute
        self.vlm.to(self.world.device)
        param_dtype = torch.bfloat16 if self.mixed_precision else None
        shard(self.vlm, self.train_strategy, self.world, self.reduce_dtype, self.sharding_group_size, param_dtype)
        rate, decay = self.hyperparameters.learning_rate, self.hyperparameters.weight_decay
        self.optimizer = build_optimizer(self.vlm, rate, decay, self.offload_optimizer)
        self.vlm.train()

    def train_step(self, batches: list[Batch], rate: float) -> StepResult:
        """Take one optimiser step on this process's share of a global batch.

        The loss is the mean over the whole global batch, by the weights of the objective (next-token cross-entropy
        weighs labelled tokens): these are summed over processes and forward passes first, and every pass then
        contributes the sum of its losses over that sum. So the result does not depend on how the rows are spread.
        Nothing is changed where the loss or the gradient is not finite, which the result tells, nor by a batch without
        weight.

        Args:
            batches: Collated batches of this process, one a forward pass; moved to the device here.
            rate: Learning rate.
        """
        with bf16_autocast(self.world.device, self.mixed_precision):
            batches = [self.objective.prepare(self.vlm, to_device(batch, self.world.device)) for batch in batches]
        weight = self.world.sum(torch.stack([self.objective.weigh(batch) for batch in batches]).sum())
        divisor = torch.where(weight > 0, weight, torch.ones_like(weight))
        tokens, images, texts = self.world.sum(torch.stack([_counts(batch) for batch in batches]).sum(dim=0))
        total = torch.zeros((), device=self.world.device)
        for index, batch in enumerate(batches):
            if self.world.size > 1:
                self.vlm.set_requires_gradient_sync(index == len(batches) - 1)  # type: ignore[operator]
            with bf16_autocast(self.world.device, self.mixed_precision):
                loss = self.objective.loss(self.vlm, batch) / divisor
            # FSDP averages over processes, and the loss is a sum over them.
            (loss * self.world.size).backward()
            total += loss.detach().float()
        grad_norm = clip_gradients(self.vlm.parameters(), self.hyperparameters.max_grad_norm)
        # At once: each by itself would be a wait for the device. fp64 (fp32 on mps) holds them as they are.
        numbers = [self.world.sum(total), grad_norm.to(total.device), weight, tokens, images, texts]
        exact = torch.float32 if total.device.type == "mps" else torch.float64
        mean, norm, weighed, *counts = torch.stack([number.to(exact) for number in numbers]).tolist()
        count, image_count, text_count = map(int, counts)
        finite = math.isfinite(mean + norm)
        # A batch without weight has nothing to learn from: weight decay alone would change the parameters.
        if finite and weighed > 0:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1
        self.tokens += count if finite else 0
        self.skipped_steps += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        positions = text_count + image_count * self.vlm.image_tokens
        return StepResult(mean, norm, count, not finite, image_count, positions)

    def is_finite(self) -> bool:
        """Return True if every trained parameter is finite, on every process."""
        broken = torch.zeros((), device=self.world.device)
        for parameter in self.vlm.parameters():
            if parameter.requires_grad:
                local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                broken += (~torch.isfinite(local.detach())).any()
        return self.world.sum(broken).item() == 0

    def plan(self, sampler: SplitModalitySampler) -> StepPlan:
        """Plan the run from the sampler's real number of batches."""
        return plan_steps(self.hyperparameters, self.world.size, sampler.batches_per_epoch)


def get_train_strategy(
    train_strategy: str, vlm: CobraVLM, world: World, hyperparameters: Hyperparameters, **options: Any
) -> TrainStrategy:
    """Build the strategy of that name; the arguments are those of :class:`TrainStrategy`, whose errors it raises."""
    return TrainStrategy(vlm, world, hyperparameters, train_strategy, **options)


def _counts(batch: Batch) -> Tensor:
    """Return (3,) int64: labels that enter the loss, rows with an image, tokens of text."""
    rows = batch["multimodal_indices"]
    images = torch.tensor(rows.numel(), device=rows.device)
    return torch.stack([count_targets(batch["labels"], rows), images, batch["attention_mask"].sum()])
