"""Training: strategies, the token-weighted step, metrics and checkpoints."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.training.config import Hyperparameters, stage_hyperparameters
    from cobra.training.metrics import Metrics
    from cobra.training.strategy import StepResult, TrainStrategy, get_train_strategy

__all__ = ["Hyperparameters", "Metrics", "StepResult", "TrainStrategy", "get_train_strategy", "stage_hyperparameters"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Hyperparameters": "cobra.training.config",
        "Metrics": "cobra.training.metrics",
        "StepResult": "cobra.training.strategy",
        "TrainStrategy": "cobra.training.strategy",
        "get_train_strategy": "cobra.training.strategy",
        "stage_hyperparameters": "cobra.training.config",
    },
)
