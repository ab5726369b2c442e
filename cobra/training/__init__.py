"""Training: strategies, the token-weighted step, metrics and checkpoints."""

from cobra.training.materialize import get_train_strategy, stage_hyperparameters
from cobra.training.metrics import Metrics
from cobra.training.strategy import Hyperparameters, StepResult, TrainStrategy

__all__ = [
    "Hyperparameters",
    "Metrics",
    "StepResult",
    "TrainStrategy",
    "get_train_strategy",
    "stage_hyperparameters",
]
