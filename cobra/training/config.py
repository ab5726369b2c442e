"""Flags of `scripts/pretrain.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from cobra.conf import DatasetConfig, DatasetRegistry, ModelConfig, ModelRegistry
from cobra.training.planning.config import PlanConfig
from cobra.util.home_paths import PathText


@dataclass
class LoraConfig:
    """Low-rank adapters in place of training the language model in full; the projector is trained in full."""

    rank: int = 0
    """Rank of the adapters; 0 trains the language model in full, without adapters."""
    alpha: int = 32
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout of the adapters' input features, as a share."""
    quantize: str | None = None
    """Keep the frozen in_proj and out_proj under the adapters in nf4 (a quarter of the memory of bf16) or int8 (half);
    null keeps them in bf16."""
    target_modules: tuple[str, ...] = ("in_proj", "x_proj", "dt_proj", "out_proj")
    """Linear maps of the mixer that get an adapter; Mamba-1 has in_proj, x_proj, dt_proj, out_proj."""


@dataclass
class PretrainConfig:
    """Train a vision-language model, in one process or in several through torchrun."""

    model: ModelConfig = field(default_factory=ModelConfig.get_choice_class(ModelRegistry.COBRA_3B.model_id))
    """Model and its optimisation; `--model.type` picks one, `--model.<field>` overrides a field."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig.get_choice_class(DatasetRegistry.LLAVA_V15.dataset_id))
    """Training data; `--dataset.type` picks a data set, `--dataset.<field>` overrides a field."""
    stage: str = "finetune"
    """Stage of training: `align` trains the projector, `finetune` also the language model, `full-finetune` also the
    vision towers."""
    pretrained_checkpoint: PathText | None = None
    """Weights to start from: a .pt, a .safetensors, a run directory or a model id. Every module in it is loaded."""
    run_id: str | None = None
    """Name of the run; by default built from data set, model, stage and seed."""
    run_root_dir: Path = Path("runs")
    """Folder that holds all runs."""
    objective: str = "next-token"
    """Training objective: `next-token`, or one that your own program has added to `OBJECTIVES`."""
    seed: int = 7
    """Seed for data order, initialisation and dropout."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; only for closed repositories."""
    trackers: tuple[str, ...] = ("jsonl",)
    """Trackers that get the metrics of every step: any of jsonl, wandb and tensorboard."""
    wandb_project: str = "cobra"
    """Project on Weights & Biases."""
    wandb_entity: str | None = None
    """User or team on Weights & Biases; null is your default."""
    device: str | None = None
    """Device to train on: cuda, mps or cpu; by default the best available."""
    num_workers: int | None = None
    """Data workers of each training process; by default up to 4 with CUDA where cores are free, and none elsewhere."""
    resume: PathText = "auto"
    """Run to resume: `auto` resumes the run of this name from its last saved state, a run directory resumes that run,
    `none` starts from the beginning."""
    save_interval_steps: int | None = None
    """Most steps that a kill may cost; the state is saved twice as often. null saves by time alone."""
    save_interval_minutes: float | None = 30.0
    """Minutes between two saves of the run's state; null saves by steps alone."""
    keep_checkpoints: int = 2
    """Number of saved states to keep; weights are kept separately (`keep_epochs`, and the best by validation loss)."""
    keep_epochs: int | None = 3
    """Number of end-of-epoch checkpoints to keep, the newest, beside the latest and the best; null keeps all. In runs
    of more than 10 epochs only every second, third, ... epoch has one, so that a run writes 10 at most."""
    time_limit: float | None = None
    """Minutes after which the run saves its state and exits with code 75."""
    stop_grace_seconds: float | None = None
    """Seconds between a request to stop and the kill that follows it; a save that would take longer is not begun. null
    takes torchrun's shutdown timeout under torchrun, and no limit elsewhere."""
    max_skipped: int = 10
    """Consecutive steps with a loss or gradient that is not finite before the run stops; such steps change nothing."""
    eval_interval_steps: int | None = None
    """Steps between two validations on held-out rows; null validates at the end of every epoch and of the run."""
    eval_samples: int = 4
    """Number of held-out rows that the model answers at every validation; the run's page shows the answers."""
    sharding_group_size: int | None = None
    """Processes that one copy of the model is sharded over, such as those of one machine; null shards over all."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in main memory: slower, for a single GPU with little memory."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters in place of training the whole language model, for GPUs with little memory."""
    page: bool = False
    """Open the run's page in the browser, or print its address where there is none."""
    dry_run: bool = False
    """Print the memory, steps, disk and hours that the run would take, with warnings, and train nothing."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Machine that `dry_run` plans for."""


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of one stage's optimisation: the fields of ModelConfig without the prefix of their stage."""

    epochs: int
    max_steps: int | None
    global_batch_size: int
    per_device_batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    lr_scheduler_type: str
    warmup_ratio: float


def stage_prefix(stage: str) -> str:
    """Return the prefix of the configuration's fields for a stage: `align`, or `finetune` for the two others."""
    return "align" if stage == "align" else "finetune"


def stage_hyperparameters(model: ModelConfig, stage: str) -> Hyperparameters:
    """Return the optimisation settings of a stage."""
    prefix = stage_prefix(stage)
    return Hyperparameters(
        **{name: getattr(model, f"{prefix}_{name}") for name in Hyperparameters.__dataclass_fields__}
    )
