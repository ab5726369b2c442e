"""The benchmark: what `benchmark.py` does, from its flags to its files."""

from rich.console import Console
from rich.markup import escape

from cobra.evaluation.config import CONCLUSIONS, BenchmarkConfig, check_flags
from cobra.evaluation.report.results import Results
from cobra.evaluation.tasks.captions import benchmark_captions
from cobra.evaluation.tasks.conclusions import benchmark_conclusions
from cobra.util.distributed import hold_together, join_world


def benchmark(config: BenchmarkConfig) -> Results | None:
    """Run a benchmark: answer, score, print, write.

    Under torchrun the processes answer together, and the main one does the rest.

    Args:
        config: The flags.

    Returns:
        What was printed and written; None on a process that is not the main one.

    Raises:
        UserError: Flags, files, images or a checkpoint are not as they must be, or another benchmark writes to the
            same folder; no results are written then. Answers
            that were given are kept, and the same command goes on from them.
    """
    check_flags(config)
    world = join_world(config.device)
    console = Console(quiet=not world.is_main)
    try:
        run = benchmark_conclusions if config.task == CONCLUSIONS else benchmark_captions
        with hold_together(world, config.output_dir, "another benchmark is at work"):
            results = run(config, world, console)
    finally:
        world.close()
    console.print(
        f"\nreport.html, metrics.json and all answers are in {escape(str(config.output_dir))}", highlight=False
    )
    return results
