"""Train a vision-language model, on all GPUs of the machine."""

import os
import sys
from dataclasses import dataclass, fields

from cobra.commands.base import Command
from cobra.training.config import PretrainConfig
from cobra.util.errors import UserError
from cobra.util.help_text import Usage
from cobra.util.waiting import loading

_COMMON = (
    *("model.type", "dataset.type", "dataset.dataset_root_dir", "stage", "pretrained_checkpoint", "run_id"),
    *("run_root_dir", "model.finetune_epochs", "model.finetune_max_steps", "model.finetune_learning_rate"),
    *("model.finetune_global_batch_size", "model.finetune_per_device_batch_size", "lora.rank", "resume", "device"),
    *("save_interval_minutes", "eval_interval_steps", "page", "dry_run"),
)
_EXAMPLES = (
    "--model.type cobra-3b --dataset.type llava-cot-100k --pretrained_checkpoint cobra+3b",
    "--model.type cobra-3b --dataset.type llava-cot-100k --pretrained_checkpoint cobra+3b --dry_run",
    "--model.type cobra-tiny --dataset.type custom --dataset.finetune_stage_components my/rows.json,my/images "
    "--dataset.dataset_root_dir . --pretrained_checkpoint cobra-tiny",
)


@dataclass
class TrainConfig(PretrainConfig):
    """Train a vision-language model, on all GPUs of the machine."""

    nproc: str = "auto"
    """Training processes on this machine: `auto` starts one for each GPU, and one where there is none. Several run
    through torchrun; under torchrun or Slurm the flag has no effect."""


def main(config: PretrainConfig) -> int:
    """Run one stage of training in this process; return 75 (130 for the keyboard) where a request to stop ended it."""
    with loading():
        from cobra.training.preemption import Stopped
        from cobra.training.pretrain import pretrain

    try:
        pretrain(config)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


def start(config: TrainConfig) -> int:
    """Run one stage of training, through torchrun where several processes are asked for.

    Raises:
        UserError: `nproc` is no number of processes.
    """
    processes = _processes(config.nproc)
    if processes == 1 or config.dry_run or "WORLD_SIZE" in os.environ:
        names = (field.name for field in fields(PretrainConfig))
        return main(PretrainConfig(**{name: getattr(config, name) for name in names}))
    return _torchrun(processes, _without_nproc(sys.argv[1:]))


def _without_nproc(arguments: list[str]) -> list[str]:
    """Return a command line without the flag, which torchrun would take for the beginning of one of its own."""
    kept = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--nproc":
            next(waiting)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def _torchrun(processes: int, arguments: list[str]) -> int:
    """Run this command through torchrun; return the exit code of the process that failed first, or 0."""
    # torchrun gives each process one thread, with a warning; on a CPU they share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with loading():
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run

    try:
        run(parse_args(["--standalone", "--nproc-per-node", str(processes), "-m", "cobra", *arguments]))
    except ChildFailedError as error:
        # The processes have said what it was.
        return error.get_first_failure()[1].exitcode
    return 0


def _processes(nproc: str) -> int:
    if nproc == "auto":
        with loading():
            import torch
        return max(1, torch.cuda.device_count())
    if not nproc.isdecimal() or int(nproc) < 1:
        raise UserError(f"--nproc is {nproc!r}: give `auto` or a number of processes from 1")
    return int(nproc)


# `scripts/pretrain.py`, which torchrun starts.
PRETRAIN = Command(main, PretrainConfig, Usage("train", _EXAMPLES, _COMMON))
COMMAND = Command(start, TrainConfig, Usage("train", _EXAMPLES, (*_COMMON, "nproc")))
