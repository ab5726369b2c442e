"""Estimates that make up a plan."""

from dataclasses import dataclass

from cobra.training.planning.config import PlanConfig
from cobra.training.planning.memory import Memory
from cobra.training.planning.row_lengths import Epoch, RowFacts
from cobra.training.schedule import StepPlan


@dataclass(frozen=True)
class PartSize:
    """One part of the model: numbers of parameters, those of them that are trained, most of their dtype, and bytes."""

    name: str
    parameters: int
    trained: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Variant:
    """Memory of one GPU at the configured rows of a pass.

    checkpointing: True where blocks are recomputed in the backward pass.
    recompute: Part of a block that is recomputed: `all`, `scan` (all but the scan and the first product) or `none`.
    largest_rows: Most rows of one pass that fit a GPU and divide the global batch; None where not even one fits.
    """

    checkpointing: bool
    recompute: str
    memory: Memory
    largest_rows: int | None


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes.

    weights: Size of a checkpoint: one at the end of an epoch, and one best or latest beside them.
    state: Size of a state to resume from.
    total: Most that lies there at one time: all checkpoints, the states that are kept, and the one being written.
    free: Free space on the disk of the run.
    """

    weights: int
    state: int
    total: int
    free: int


@dataclass(frozen=True)
class Work:
    """Operations and time.

    step: Floating-point operations of an average step, without recomputation.
    recomputed: Operations of the second forward pass that gradient checkpointing makes in it.
    peak_tflops: Peak of one GPU, 10^12 operations a second; None where it is not known.
    peak_source: Source of the peak, in words.
    hours: Hours of the whole run at the assumed utilisation; None without a peak.
    """

    step: float
    recomputed: float
    peak_tflops: float | None
    peak_source: str
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """Forecast of a run, without running it.

    device: `cuda`, `mps` or `cpu`.
    strategy: Train strategy, which spreads the model over processes.
    image_tokens: Positions that an image takes.
    longest: Positions of the longest row.
    epoch: The first pass over the rows.
    variants: Memory as configured, then with other parts of the blocks recomputed.
    start: Main memory in bytes of each process that builds the model, in fp32, before it is cast and moved.
    warnings: Sentences about whatever would fail or surprise.
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
