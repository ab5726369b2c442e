"""Factory of train strategies."""

from typing import Any

from cobra.models.vlms import CobraVLM
from cobra.training.config import Hyperparameters
from cobra.training.strategy import TrainStrategy
from cobra.util.distributed import World


def get_train_strategy(
    train_strategy: str, vlm: CobraVLM, world: World, hyperparameters: Hyperparameters, **options: Any
) -> TrainStrategy:
    """Build the strategy of that name.

    Args:
        train_strategy: A key of :data:`cobra.training.sharding.RESHARD`.
        vlm: The model, with `freeze_backbones` called for its stage.
        world: The processes.
        hyperparameters: Settings of the stage's optimisation.
        **options: Further arguments of :class:`TrainStrategy`.

    Raises:
        UserError: The strategy or the schedule is unknown (the known ones are listed), or batches do not divide.
    """
    return TrainStrategy(vlm, world, hyperparameters, train_strategy, **options)
