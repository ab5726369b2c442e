"""Checks of a run's settings, made before a model is built, a row is read or a file is written."""

from cobra.models.vlms import check_stage
from cobra.preprocessing.datasets.answer_forms import FULL, check_answer_form
from cobra.preprocessing.datasets.datasets import check_row_options
from cobra.training.config import Hyperparameters, PretrainConfig, stage_hyperparameters, stage_prefix
from cobra.training.lora import check_lora
from cobra.training.metrics import check_trackers
from cobra.training.objective import find_objective
from cobra.training.schedule import check_batches, check_schedule
from cobra.training.sharding import check_strategy, group_size
from cobra.util.errors import UserError, check_values

_AT_LEAST_ONE = ("save_interval_steps", "keep_checkpoints", "keep_epochs", "max_skipped", "eval_interval_steps")
_ABOVE_ZERO = ("save_interval_minutes", "time_limit", "stop_grace_seconds")


def check_run(config: PretrainConfig, world_size: int) -> None:
    """Check all that the flags alone can tell, for a number of processes; a plan makes the same checks.

    Raises:
        UserError: A setting makes no sense; its flag, and what would work, are named.
    """
    check_stage(config.stage)
    check_trackers(config.trackers)
    find_objective(config.objective)
    values, length, workers = vars(config), config.model.llm_max_length, config.num_workers
    check_values(
        {name: (values[name], values[name] is None or values[name] >= 1, "at least 1") for name in _AT_LEAST_ONE}
        | {name: (values[name], values[name] is None or values[name] > 0, "above 0") for name in _ABOVE_ZERO}
        | {"num_workers": (workers, workers is None or workers >= 0, "at least 0")}
        | {"model.llm_max_length": (length, length >= 1, "at least 1")}
    )
    check_lora(config.lora, config.stage)
    prefix, settings = stage_prefix(config.stage), stage_hyperparameters(config.model, config.stage)
    strategy = getattr(config.model, f"{prefix}_train_strategy")
    check_optimisation(settings, strategy, world_size, config.sharding_group_size, prefix)
    check_row_options(config.dataset.on_bad_image, config.dataset.truncation)
    check_answer_form(config.dataset.answer)
    if config.stage == "align" and config.dataset.answer != FULL:
        raise UserError(
            f"--dataset.answer {config.dataset.answer} is of the finetune stages: captions of the align stage have no "
            "stages of reasoning. Leave it out, or give --stage finetune"
        )


def check_optimisation(
    values: Hyperparameters, strategy: str, world_size: int, sharding_group_size: int | None, prefix: str
) -> None:
    """Check the optimisation of a stage.

    Args:
        values: Its settings.
        strategy: Name of the train strategy.
        world_size: Processes.
        sharding_group_size: See :func:`cobra.training.sharding.group_size`.
        prefix: Beginning of the flags' names, `align` or `finetune`, for the error.

    Raises:
        UserError: A setting makes no sense, or the processes do not divide the batch or into groups.
    """
    check_strategy(strategy)
    group_size(strategy, world_size, sharding_group_size)
    check_schedule(values.lr_scheduler_type)
    checks = {
        "epochs": (values.epochs, values.epochs >= 1, "at least 1"),
        "max_steps": (values.max_steps, values.max_steps is None or values.max_steps >= 1, "at least 1, or null"),
        "learning_rate": (values.learning_rate, values.learning_rate > 0, "above 0"),
        "weight_decay": (values.weight_decay, values.weight_decay >= 0, "at least 0"),
        "max_grad_norm": (values.max_grad_norm, values.max_grad_norm > 0, "above 0"),
        "warmup_ratio": (values.warmup_ratio, 0 <= values.warmup_ratio <= 1, "in [0, 1]"),
    }
    check_values(checks, f"model.{prefix}_")
    check_batches(values.global_batch_size, values.per_device_batch_size, world_size, prefix)
