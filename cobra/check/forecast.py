"""Forecast of what training would do with the rows, without a model."""

from dataclasses import dataclass, replace
from pathlib import Path

from cobra.check.texts import with_tokenizer
from cobra.conf import DatasetConfig, ModelConfig
from cobra.training.config import stage_hyperparameters
from cobra.training.planning.row_lengths import plan_epoch, read_facts
from cobra.training.schedule import plan_steps
from cobra.util.program import command_line

_STAGE = "finetune"


@dataclass(frozen=True)
class Forecast:
    """Steps of a run on one process, with the model's own settings."""

    model: str
    rows: int
    """Rows that are trained on."""
    cut: int
    """Rows among them that are cut."""
    batch: int
    """Rows of a step."""
    steps_an_epoch: int
    epochs: int
    steps: int
    command: str
    """The command that starts the run."""


def forecast(annotation_file: Path, folder: Path, holdout: Path | None, drop: bool, model: ModelConfig) -> Forecast:
    """Plan the steps of a run of the finetune stage.

    Args:
        annotation_file: The rows.
        folder: The image folder.
        holdout: Held-out rows, or None.
        drop: Leave out rows whose CONCLUSION would be cut.
        model: The model; a batch larger than the rows is made smaller.

    Raises:
        UserError: Training would refuse the rows.
    """
    dataset = DatasetConfig.get_choice_class("custom")(
        finetune_stage_components=(annotation_file, folder),
        dataset_root_dir=Path(),
        truncation="drop" if drop else "right",
    )
    facts = read_facts(_STAGE, dataset, with_tokenizer(model)[0], 0)
    count, values = len(facts.tokens), stage_hyperparameters(model, _STAGE)
    flags = ["--model.type", model.model_id, "--dataset.type", "custom", "--dataset.dataset_root_dir", "."]
    flags += ["--dataset.finetune_stage_components", f"{annotation_file},{folder}"]
    if holdout is not None:
        flags += ["--dataset.holdout_components", f"{holdout},{folder}"]
    if drop:
        flags += ["--dataset.truncation", "drop"]
    if count < values.global_batch_size:
        batch = 1 << (count.bit_length() - 1)
        part = min(batch, values.per_device_batch_size)
        values = replace(values, global_batch_size=batch, per_device_batch_size=part)
        flags += ["--model.finetune_global_batch_size", str(batch), "--model.finetune_per_device_batch_size", str(part)]
    epoch = plan_epoch(facts, values, 1, 0, 0)
    steps = plan_steps(values, 1, epoch.batches)
    return Forecast(
        model=model.model_id,
        rows=count,
        cut=facts.longer or 0,
        batch=values.global_batch_size,
        steps_an_epoch=epoch.batches,
        epochs=values.epochs,
        steps=steps.total_steps,
        command=command_line("train", *flags, "--pretrained_checkpoint", model.model_id),
    )
