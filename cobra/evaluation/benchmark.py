"""Run of a benchmark, from its flags to its files."""

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from cobra.evaluation.config import CAPTIONS, CONCLUSIONS, BenchmarkConfig
from cobra.evaluation.data.lmms_eval_logs import read_logs
from cobra.evaluation.report.next_steps import next_steps
from cobra.evaluation.report.results import PAGE, Results
from cobra.evaluation.responses.protocol import resolve_prompt
from cobra.evaluation.tasks.base import Task, run_task
from cobra.evaluation.tasks.captions import CaptionTask
from cobra.evaluation.tasks.conclusions import ConclusionTask
from cobra.evaluation.tasks.logged import LogTask
from cobra.models.generation.options import SEARCH_SAMPLING, SearchOptions
from cobra.models.quantized import check_quantize
from cobra.util.distributed import hold_together, join_world
from cobra.util.errors import UserError, check_known
from cobra.util.program import command_line, names_next_commands
from cobra.util.torch_utils import resolve_device, resolve_dtype

TASKS: dict[str, type[Task]] = {CAPTIONS: CaptionTask, CONCLUSIONS: ConclusionTask}
"""Tasks by the value of --task."""

# Endings of results files, which no checkpoint has.
_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
# Flags that the task llava-cot has no use for.
_OF_CAPTIONS = "coco_annotations split image_ids predictions exclude_ids coco_instances similarity_model".split()


def benchmark(config: BenchmarkConfig) -> Results | None:
    """Run a benchmark: answer, score, print, write.

    Under torchrun the processes answer together, and the main one does the rest.

    Returns:
        What was printed and written, of several logged tasks the last one's; None on a process that is not the main
        one.

    Raises:
        UserError: Flags, files, images or a checkpoint are not as they must be, or another benchmark writes to the
            same folder; no results are written then. Answers that were given are kept, and the same command resumes
            from them.
    """
    check_flags(config)
    world, results = join_world(config.device), None
    console = Console(quiet=not world.is_main)
    try:
        with hold_together(world, config.output_dir, "another benchmark is at work"):
            for task in _tasks(config):
                results = run_task(task, task.config, world, console)
                if results is not None:
                    _print_way_on(console, task.config, results)
    finally:
        world.close()
    return results


def _tasks(config: BenchmarkConfig) -> list[Task]:
    """Return the task that is asked for, or those that lmms-eval has logged, several in folders of their own."""
    if not config.lmms_eval_logs:
        return [TASKS[config.task](config)]
    logged = read_logs(config.lmms_eval_logs)
    if len(logged) == 1:
        return [LogTask(config, logged[0])]
    return [LogTask(replace(config, output_dir=config.output_dir / one.name), one) for one in logged]


def _print_way_on(console: Console, config: BenchmarkConfig, results: Results) -> None:
    """Print where everything is, and the next commands."""
    lines = [
        f"\n{config.output_dir / PAGE} has all answers, with pictures where they are given, charts, all metrics, the "
        "wordings and the signature; metrics.json and the answers lie beside it"
    ]
    if names_next_commands():
        lines += [f"to {purpose}: {command}" for purpose, command in next_steps(results)]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def check_flags(config: BenchmarkConfig) -> None:
    """Raise a UserError where flags make no sense by themselves or together."""
    if config.lmms_eval_logs:
        _check_logs(config)
        return
    check_answering(config)
    if config.checkpoint is None and config.predictions is None:
        raise UserError(
            "there is nothing to score: give --checkpoint (a run directory, a .pt file or a model id), --predictions "
            "(captions in COCO's results format) or --lmms_eval_logs (folders that lmms-eval has written)"
        )
    if config.checkpoint is not None and Path(config.checkpoint).suffix.lower() in _TABLES:
        raise UserError(f"--checkpoint {config.checkpoint} is no model: captions to score are given with --predictions")
    if config.baseline_checkpoint is not None and config.checkpoint is None:
        raise UserError("--baseline_checkpoint is compared with --checkpoint: give that too, or it as --checkpoint")


def check_answering(config: BenchmarkConfig) -> None:
    """Raise a UserError where the task or the flags of how models answer make no sense, however many models there are.

    A flag of another task than `--task` is one of them.
    """
    check_known(config.task, TASKS, "--task")
    if config.task == CONCLUSIONS:
        _check_conclusions(config)
    elif config.llava_cot_annotations is not None:
        raise UserError(f"--llava_cot_annotations is of another task: give --task {CONCLUSIONS} too")
    resolve_prompt(config.prompt)
    for name in ("max_new_tokens", "max_images", "batch_size", "beams"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value} and must be at least 1")
    SearchOptions(config.search, config.beams, replace(SEARCH_SAMPLING, max_new_tokens=config.max_new_tokens))
    resolve_dtype(config.dtype, resolve_device(config.device))
    check_quantize(config.quantize, "--quantize")


def given_flags(config: BenchmarkConfig, used: Collection[str]) -> list[str]:
    """Return the flags that were given other values than their defaults, but for some that are used."""
    return [
        f"--{one.name}" for one in fields(config) if one.name not in used and getattr(config, one.name) != one.default
    ]


def _check_logs(config: BenchmarkConfig) -> None:
    if given := given_flags(config, ("lmms_eval_logs", "output_dir")):
        raise UserError(
            f"--lmms_eval_logs compares answers that lmms-eval has scored, and has no use for {', '.join(given)}"
        )


def _check_conclusions(config: BenchmarkConfig) -> None:
    given = [f"--{name}" for name in _OF_CAPTIONS if getattr(config, name) is not None]
    given += ["--allow_missing"] * config.allow_missing + ["--prompt"] * (config.prompt != "seed")
    if given:
        raise UserError(f"the task {CONCLUSIONS} asks the rows' own questions and has no use for {', '.join(given)}")


if __name__ == "__main__":
    raise SystemExit(f"this module is no program; run: {command_line('benchmark')}")
