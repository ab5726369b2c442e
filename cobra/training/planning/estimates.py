"""The figures of a plan."""

from dataclasses import dataclass

from cobra.training.planning.config import PlanConfig
from cobra.training.planning.memory import Memory
from cobra.training.planning.row_lengths import Epoch, RowFacts
from cobra.training.schedule import StepPlan


@dataclass(frozen=True)
class PartSize:
    """One part of the model."""

    name: str
    parameters: int
    trained: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Variant:
    """Memory of one GPU, with or without gradient checkpointing.

    memory: At the configured rows of a forward pass.
    largest_rows: Most rows of one pass that fit a GPU and divide the global batch; None where not even one fits.
    """

    checkpointing: bool
    memory: Memory
    largest_rows: int | None


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes.

    weights: Of each checkpoint, one at the end of an epoch and one best or latest beside them.
    state: Of each state to resume from.
    total: At most, at one time: all checkpoints, and the states that are kept and the one that is being written.
    free: Where the run will lie.
    """

    weights: int
    state: int
    total: int
    free: int


@dataclass(frozen=True)
class Work:
    """Operations and time.

    step: Floating-point operations of an average step, without recomputation.
    recomputed: Of the second forward pass that gradient checkpointing makes in it.
    peak_tflops: Of one GPU, 10^12 a second; None where it is not known.
    peak_source: Where that is from.
    hours: Of the whole run at the assumed utilisation; None without a peak.
    """

    step: float
    recomputed: float
    peak_tflops: float | None
    peak_source: str
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a run will be like; every figure is computed, none measured.

    Attributes:
        model_id: The model.
        stage: Of training.
        device: `cuda`, `mps` or `cpu`.
        strategy: How the model is spread over processes.
        parts: Of the model.
        rows: What is trained on.
        image_tokens: Positions that an image takes.
        longest: Positions of the longest row.
        epoch: The first pass over the rows.
        steps: Of the run.
        options: What was asked for.
        variants: As configured, then with gradient checkpointing the other way.
        start: Bytes of main memory of each process that builds the model.
        disk: What is written.
        work: What is computed.
        warnings: What would go wrong or surprise.
    """

    model_id: str
    stage: str
    device: str
    strategy: str
    parts: list[PartSize]
    rows: RowFacts
    image_tokens: int
    longest: int
    epoch: Epoch
    steps: StepPlan
    options: PlanConfig
    variants: list[Variant]
    start: int
    disk: Disk
    work: Work
    warnings: list[str]
