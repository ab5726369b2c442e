"""Flags of `scripts/pretrain.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from cobra.conf import DatasetConfig, DatasetRegistry, ModelConfig, ModelRegistry
from cobra.training.planning.config import PlanConfig
from cobra.util.home_paths import PathText


@dataclass
class LoraConfig:
    """Adapters in place of training the language model in full; the projector is trained in full all the same."""

    rank: int = 0
    """Rank of the adapters; 0 trains the language model in full, without adapters."""
    alpha: int = 32
    """The adapters' product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the input features that an adapter leaves out in a pass."""
    target_modules: tuple[str, ...] = ("in_proj", "x_proj", "dt_proj", "out_proj")
    """Linear maps of the mixer that get an adapter; Mamba-1 has in_proj, x_proj, dt_proj, out_proj."""


@dataclass
class PretrainConfig:
    """Train a vision-language model: one process as it is, several through torchrun."""

    model: ModelConfig = field(default_factory=ModelConfig.get_choice_class(ModelRegistry.COBRA_3B.model_id))
    """Model and its optimisation; `--model.type` picks one, `--model.<field>` overrides a field."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig.get_choice_class(DatasetRegistry.LLAVA_V15.dataset_id))
    """Data; `--dataset.type` picks a set, `--dataset.<field>` overrides a field."""
    stage: str = "finetune"
    """`align` trains the projector, `finetune` also the language model, `full-finetune` also the vision towers."""
    pretrained_checkpoint: PathText | None = None
    """Weights to start from: a .pt, a .safetensors, a run directory or a model id. Every module it holds is loaded."""
    run_id: str | None = None
    """Name of the run; by default made of dataset, model, stage and seed."""
    run_root_dir: Path = Path("runs")
    """Folder of all runs."""
    objective: str = "next-token"
    """Training objective: `next-token`, or a name that a program of your own has registered."""
    seed: int = 7
    """Of the order of rows and of everything random."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; only for closed repositories."""
    trackers: tuple[str, ...] = ("jsonl",)
    """Out of jsonl, wandb, tensorboard."""
    wandb_project: str = "cobra"
    """For wandb."""
    wandb_entity: str | None = None
    """For wandb."""
    device: str | None = None
    """cuda, mps or cpu; by default the best at hand."""
    num_workers: int | None = None
    """Processes that read rows, for each training process; by default up to 4 where there are cores to spare."""
    resume: PathText = "auto"
    """`auto` goes on with the run of this name where it has stopped; a run directory goes on with that one; `none`
    begins anew."""
    save_interval_steps: int | None = None
    """Steps that a kill costs at most: the state is saved twice as often. null saves by time alone."""
    save_interval_minutes: float | None = 30.0
    """Minutes between two saves of the run's state; null saves by steps alone."""
    keep_checkpoints: int = 2
    """States that are kept; the weights of the last epochs' ends and the best by validation loss stay anyway."""
    keep_epochs: int | None = 3
    """Checkpoints of epochs' ends that are kept, the newest, beside the latest and the best; null keeps all. Of more
    than 10 epochs every second, third, ... end has one, so that a run writes 10 at most."""
    time_limit: float | None = None
    """Minutes after which the run saves its state and ends with exit code 75."""
    stop_grace_seconds: float | None = None
    """Seconds between a request to stop and the kill that follows it. null takes torchrun's shutdown timeout under
    torchrun, and no limit elsewhere. A state that takes longer to save is not begun then."""
    max_skipped: int = 10
    """Steps in a row whose loss or gradient is not finite before the run stops; such steps change nothing."""
    eval_interval_steps: int | None = None
    """Steps between two looks at the held-out rows; null looks at the end of every epoch and of the run."""
    eval_samples: int = 4
    """Held-out rows that the model answers at every look; the answers are in samples.html of the run."""
    sharding_group_size: int | None = None
    """Processes that share one copy of the model, those of a machine say; null is all of them."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in main memory: slower, for a single small card."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters in place of the whole language model, for small cards."""
    dry_run: bool = False
    """Print what the run would take (memory, steps, disk, hours) and what would go wrong, and train nothing."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """The machine that `dry_run` plans for."""


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
