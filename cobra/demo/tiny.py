"""Make the baseline weights of `cobra-tiny` by a chain of runs on captions of rendered scenes and on where things are.

Every run is the project's own `scripts/pretrain.py`. A tiny model given long answers first learns the text and never
looks at the image, so the chain starts from one-object scenes, whose short captions leave little but the image to
learn, and goes on to scenes of up to three. Then the towers see what they need to, and stay as they are while the
language model learns to find what a question names.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from cobra.demo.datasets import write_caption_rows
from cobra.demo.tokenizer import write_tokenizer
from cobra.models.checkpoint import MODULE_KEYS, Checkpoint, read_checkpoint
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.models.run_folder import LATEST
from cobra.models.tensors import TIED_HEAD
from cobra.util.errors import UserError, check_known
from cobra.util.files import atomic_path, read_json, write_json

_CONSOLE = Console(highlight=False, soft_wrap=True)
_REPOSITORY = Path(__file__).resolve().parents[2]
TINY_FOLDER = _REPOSITORY / "cobra" / "models" / "tiny"

# What goes into the wheel stays small.
_MAX_BYTES = 4_000_000
# The tied copy of the embedding; readers restore it.
_TIED = ("llm_backbone", TIED_HEAD)
# The recurrence amplifies rounding of its rates, so these few stay in fp32.
_FULL_PRECISION = tuple(f"mixer.{name}" for name in Mamba1Mixer.fp32_names)


@dataclass(frozen=True)
class TrainingRun:
    """One link of the chain; a link starts from the weights of the one before."""

    name: str
    max_objects: int
    """Objects a scene of its data holds at most."""
    rows: int
    """Rows of its data."""
    data_seed: int
    """Seed of its data."""
    steps: int
    batch_size: int
    learning_rate: float
    """Peak; warm-up and cosine decay to 0 as in every run."""
    stage: str = "full-finetune"
    places_share: float = 0.0
    """Share of rows that ask where things are; the rest are captions."""


RUNS = (
    TrainingRun("one-object", 1, rows=8_000, data_seed=7, steps=300, batch_size=64, learning_rate=1e-3),
    TrainingRun("three-objects", 3, rows=40_000, data_seed=8, steps=1_500, batch_size=64, learning_rate=1e-3),
    TrainingRun(
        "places",
        3,
        rows=40_000,
        data_seed=9,
        steps=6_000,
        batch_size=32,
        learning_rate=1.5e-3,
        stage="finetune",
        places_share=0.9,
    ),
)
_SEED = 7
PROCESSES = 2
TORCHRUN_FLAGS = ("--standalone", "--nnodes", "1", "--nproc-per-node", str(PROCESSES))
STEPS = ("all", "tokenizer", "train", "package")


def make_tiny(work_dir: Path, step: str = "all") -> None:
    """Make the packaged files of `cobra-tiny`; runs that are complete are skipped.

    Of `STEPS`, `tokenizer` and `package` write into the package, `train` into `work_dir` only: the data and the runs.

    Raises:
        UserError: The step is unknown, a run failed, or the last run is not complete.
    """
    check_known(step, STEPS, "--step")
    if step in ("all", "tokenizer"):
        tokenizer = write_tokenizer(TINY_FOLDER)
        _CONSOLE.print(f"tokenizer of {tokenizer.get_vocab_size()} entries -> {TINY_FOLDER}")
    if step in ("all", "train"):
        for index in range(len(RUNS)):
            train(index, work_dir)
    if step in ("all", "package"):
        path = package([work_dir / run.name for run in RUNS], TINY_FOLDER / "model.safetensors")
        _CONSOLE.print(f"{path.stat().st_size:,} bytes -> {path}")


def command(index: int, work_dir: Path) -> list[str]:
    """Return the command line of one run of `RUNS`, without torchrun and its flags."""
    run = RUNS[index]
    start = ["--pretrained_checkpoint", str(work_dir / RUNS[index - 1].name)] if index else []
    return [
        "scripts/pretrain.py",
        *("--model.type", "cobra-tiny"),
        # Nothing packaged goes into the chain: what a run's start does not bring is random.
        *("--model.vision_backbone_id", "dinosiglip-vit-tiny-48px-init"),
        *("--model.llm_backbone_id", "mamba-0.5m-init-zephyr"),
        *("--stage", run.stage),
        *("--dataset.type", "custom"),
        *("--dataset.dataset_root_dir", str(_data_dir(run, work_dir))),
        *("--model.finetune_max_steps", str(run.steps)),
        *("--model.finetune_global_batch_size", str(run.batch_size)),
        *("--model.finetune_per_device_batch_size", str(run.batch_size // PROCESSES)),
        *("--model.finetune_learning_rate", str(run.learning_rate)),
        *start,
        *("--seed", str(_SEED)),
        # On a machine with one GPU two processes could not share it, and the model is too small to gain by one.
        *("--device", "cpu"),
        *("--run_id", run.name),
        *("--run_root_dir", str(work_dir)),
    ]


def train(index: int, work_dir: Path) -> None:
    """Write the data of a run and train it, unless it is complete with these settings; a UserError where that fails."""
    run = RUNS[index]
    arguments = command(index, work_dir)
    # A run depends on all runs before it.
    recipe = [asdict(earlier) for earlier in RUNS[: index + 1]]
    marker = work_dir / run.name / "complete.json"
    if marker.is_file() and read_json(marker, "the record of a complete run") == recipe:
        _CONSOLE.print(f"{run.name}: complete, skipped ({marker.parent})")
        return
    write_caption_rows(_data_dir(run, work_dir), run.rows, run.data_seed, run.max_objects, run.places_share)
    _CONSOLE.print(f"$ torchrun {' '.join([*TORCHRUN_FLAGS, *arguments])}")
    program = [sys.executable, "-m", "torch.distributed.run", *TORCHRUN_FLAGS, *arguments]
    # One thread a process: on two cores more of them only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = subprocess.run(program, cwd=_REPOSITORY, env=environment, check=False).returncode
    if code:
        raise UserError(f"the run {run.name} ended with code {code}; its messages are above. Run the command again")
    write_json(marker, recipe)


def package(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write the weights that a chain of runs ends with as a small safetensors file.

    Every module is that of the last run that trained it. Matrices become bf16; the rates of the recurrence (A_log, D,
    dt's bias) stay as they are. Names are `<module>.<name>`; the tied head is left out. `path` is returned.

    Raises:
        UserError: A run has no checkpoint, a module is missing in all, or the file would be over 4 MB.
    """
    modules: Checkpoint = {}
    for run_dir in run_dirs:
        modules |= read_checkpoint(run_dir / LATEST)
    last = run_dirs[-1]
    missing = [module for module in MODULE_KEYS if module not in modules]
    if missing:
        raise UserError(f"the checkpoints up to {last} lack {', '.join(missing)}: package runs that train all")
    tensors = _flatten(modules)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > _MAX_BYTES:
        raise UserError(f"the weights of {last} take {size:,} bytes; the package has room for {_MAX_BYTES:,}")
    recipe = json.dumps({"model_id": "cobra-tiny", "runs": [asdict(run) for run in RUNS]})
    with atomic_path(path) as temporary:
        # One entry only: the order of several would differ from write to write.
        save_file(tensors, temporary, metadata={"recipe": recipe})
    return path


def _flatten(modules: Checkpoint) -> dict[str, Tensor]:
    return {
        f"{module}.{name}": tensor.to(torch.float32 if name.endswith(_FULL_PRECISION) else torch.bfloat16).contiguous()
        for module, tensors in modules.items()
        for name, tensor in tensors.items()
        if (module, name) != _TIED
    }


def _data_dir(run: TrainingRun, work_dir: Path) -> Path:
    return work_dir / "data" / run.name
