"""Flags of a plan."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.errors import check_values


@dataclass
class PlanConfig:
    """Machine that a run is planned for."""

    world_size: int | None = None
    """GPUs, over all machines; by default the processes that torchrun has started, or one."""
    gpu_memory: float = 80.0
    """Memory of one GPU in GiB, the number in the name of most cards."""
    peak_tflops: float | None = None
    """Peak of one GPU in bf16 without sparsity, in 10^12 operations a second; by default that of the GPU at hand where
    it is known, else 312, an A100's. An H100 SXM has 989."""
    utilisation: float = 0.35
    """Share of that peak that the run is assumed to reach; the hours are as good as this guess."""
    json_file: Path | None = None
    """Also write the plan as JSON to this file."""


def check_plan(options: PlanConfig) -> None:
    """Raise a UserError, naming the flag, where a setting makes no sense."""
    checks = {
        "world_size": (options.world_size, options.world_size is None or options.world_size >= 1, "at least 1"),
        "gpu_memory": (options.gpu_memory, options.gpu_memory > 0, "above 0"),
        "peak_tflops": (options.peak_tflops, options.peak_tflops is None or options.peak_tflops > 0, "above 0"),
        "utilisation": (options.utilisation, 0 < options.utilisation <= 1, "above 0 and at most 1"),
    }
    check_values(checks, "plan.")
