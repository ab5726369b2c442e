"""The factory of train strategies."""

from typing import Any

from cobra.conf import ModelConfig
from cobra.models.vlms import CobraVLM
from cobra.training.strategy import Hyperparameters, TrainStrategy
from cobra.util.distributed import World


def stage_prefix(stage: str) -> str:
    """Return the prefix of the configuration's fields for a stage: `align`, or `finetune` for the two others."""
    return "align" if stage == "align" else "finetune"


def stage_hyperparameters(model: ModelConfig, stage: str) -> Hyperparameters:
    """Return the optimisation settings of a stage."""
    prefix = stage_prefix(stage)
    return Hyperparameters(
        **{name: getattr(model, f"{prefix}_{name}") for name in Hyperparameters.__dataclass_fields__}
    )


def get_train_strategy(
    train_strategy: str, vlm: CobraVLM, world: World, hyperparameters: Hyperparameters, **options: Any
) -> TrainStrategy:
    """Build the strategy of that name.

    Args:
        train_strategy: A key of :data:`cobra.training.sharding.RESHARD`.
        vlm: The model, with `freeze_backbones` called for its stage.
        world: The processes.
        hyperparameters: Of the stage.
        **options: Further arguments of :class:`TrainStrategy`.

    Raises:
        UserError: The strategy or the schedule is unknown (the known ones are listed), or batches do not divide.
    """
    return TrainStrategy(vlm, world, hyperparameters, train_strategy, **options)
