"""Count what Mamba costs on a GPU, without one: launches, bytes kept for the backward pass, bytes that are gathered.

Launches and kept bytes are counted on tensors without numbers, in the sizes of cobra+3b: every operation of PyTorch
that computes is a launch, and so is every Triton kernel that is started. Gathered bytes are those of a training step of
two processes on gloo. The same is counted of a commit before, in the same run.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.append(str(Path(__file__).resolve().parents[1]))

from train_step import TrainStepBenchmark, build_model, make_batches

from cobra.models.load import cast
from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.mixer import fp32_parameters
from cobra.models.mamba.model import MambaBlock
from cobra.models.mamba.ops import torch_ops, use_op
from cobra.training.config import Hyperparameters
from cobra.training.strategy import TrainStrategy
from cobra.util import cli
from cobra.util.distributed import World

ROOT = Path(__file__).resolve().parents[2]
# Positions of a row of cobra+3b with 2,048 tokens of text.
POSITIONS = 2_777
# Operations that move no numbers: they make views or uninitialised memory.
_FREE = frozenset(
    ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "alias", "_unsafe_view")
    # The latter is a number of the CPU, for an operation that is counted.
    + ("promote_types", "scalar_tensor")
)


@dataclass
class CountsBenchmark:
    """Count launches, kept and gathered bytes, here and at a commit before."""

    before: str = "67e20d9"
    """Commit to compare with, taken from this repository."""
    out: Path | None = None
    """Also write the numbers as JSON to this file."""
    count: str | None = None
    """Kind of operations, torch or triton, whose numbers alone are printed as JSON, by a process of the benchmark's."""


class Launches(TorchDispatchMode):
    """Counts the launches of a GPU: operations that compute, and Triton kernels, which are not run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "cobra":
            # The operation's own Python, so that what it does is counted.
            with self:
                return torch._library.custom_ops.OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        # Below autograd an operation that is made of others comes whole: `to` is a view or a copy.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        views = [value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns]
        name = func._schema.name.partition("::")[2]
        if not any(views) and name not in _FREE:
            self.names.append(name)
        return func(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator["Launches"]:
        """Count within a block."""
        jit: Any = None
        try:
            jit = import_module("triton.runtime.jit").JITFunction
        except ImportError:
            with self:
                yield self
            return
        usual = jit.run

        def note(kernel: Any, *args: Any, **kwargs: Any) -> None:
            self.names.append(kernel.__name__)

        jit.run = note
        try:
            with self:
                yield self
        finally:
            jit.run = usual


def make_block(config: MambaConfig, dtype: torch.dtype) -> MambaBlock:
    """Return a block without numbers whose matrices are of that dtype, as FSDP gathers them."""
    with torch.device("meta"):
        block = MambaBlock(config)
    kept = fp32_parameters(block)
    for name, parameter in block.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
    return block


def count_decode(config: MambaConfig, dtype: torch.dtype) -> int:
    """Return the launches of a block that reads a token of one row."""
    block = make_block(config, dtype)
    state = MambaState.zeros(config, 1, "meta").layer(0)
    stream = torch.empty(1, 1, config.d_model, device="meta")
    hidden = stream.to(dtype)
    with torch.no_grad(), Launches().running() as launches:
        block(hidden, stream, state)
    return len(launches.names)


def layer_inputs(config: MambaConfig, rows: int) -> tuple[Tensor, Tensor]:
    """Return what a block gets in training in bf16: the block's before (rows, positions, d_model), and the stream."""
    shape = (rows, POSITIONS, config.d_model)
    hidden = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    return hidden, torch.empty(shape, device="meta", requires_grad=True)


def count_layer(config: MambaConfig) -> int:
    """Return the launches of a block's forward and backward pass over one row."""
    block, inputs = make_block(config, torch.bfloat16), layer_inputs(config, 1)
    with Launches().running() as launches:
        outputs = block(*inputs)
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return len(launches.names)


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        return result


def kept_tensors(config: MambaConfig, policy: str) -> float:
    """Return what is kept of a block for its backward pass, its stream included, in bf16 (rows, positions, width).

    Weights are left out. It is what there is after the forward pass of three blocks beyond that of two.

    Args:
        config: Sizes of the model.
        policy: Part that is recomputed, one of `recompute.POLICIES`; a commit before knows all and none.
    """
    sizes = []
    for count in (2, 3):
        with torch.device("meta"):
            llm = MambaLM(replace(config, n_layer=count))
        cast(llm, torch.bfloat16)
        llm.gradient_checkpointing, llm.recompute = policy != "none", policy
        embeds = torch.empty(1, POSITIONS, config.d_model, dtype=torch.bfloat16, device="meta", requires_grad=True)
        with Alive() as alive:
            held = llm(embeds)
            gc.collect()
            weights = {parameter.untyped_storage()._cdata for parameter in llm.parameters()}
            sizes.append(sum(size for key, size in alive.sizes.items() if key not in weights))
        del held
    return (sizes[1] - sizes[0]) / (2 * POSITIONS * config.d_inner)


def count_gathered() -> int:
    """Return the bytes that one of two processes gathers in a training step of a small model, on gloo, as on CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_gather, (2, folder), nprocs=2)
        return int((Path(folder) / "bytes").read_text())


class _Gathered(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d._allgather_base_.default:
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


def _gather(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    # Wide beside its towers, as cobra+3b is.
    config = TrainStepBenchmark(text=16, rows=1, passes=2, width=256, layers=4)
    vlm = build_model(config)
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(
        epochs=1,
        max_steps=None,
        global_batch_size=size,
        per_device_batch_size=1,
        learning_rate=1e-4,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear-warmup+cosine-decay",
        warmup_ratio=0.0,
    )
    strategy = TrainStrategy(vlm, World(rank, size, torch.device("cpu")), values)
    # As on CUDA.
    strategy.mixed_precision = True
    strategy.run_setup()
    with _Gathered() as gathered:
        strategy.train_step([make_batches(config)[rank]], 1e-4)
    if rank == 0:
        (Path(folder) / "bytes").write_text(str(gathered.bytes))
    strategy.world.close()


def count(kind: str) -> dict[str, Any]:
    """Return all counts of the operations named `torch` or `triton`, of the package that is imported here."""
    config = MambaConfig(d_model=2560, n_layer=64, vocab_size=50_280)
    with use_op(torch_ops if kind == "torch" else import_module("cobra.models.mamba.ops.triton_ops")):
        counts: dict[str, Any] = {
            "launches of a block at decode, fp32": count_decode(config, torch.float32),
            "launches of a block at decode, bf16": count_decode(config, torch.bfloat16),
            f"launches of a layer's forward and backward at T = {POSITIONS:,}": count_layer(config),
        }
        policies = ("none", "all") if kind == "torch" else ("none", "scan", "all")
        for policy in policies:
            counts[f"kept of a layer, recomputing {policy}, in bf16 (B, T, d)"] = kept_tensors(config, policy)
    return counts | {"bytes gathered in a training step": count_gathered()}


def count_before(commit: str) -> dict[str, Any]:
    """Return the counts of a commit of this repository, with the operations that a GPU without kernels used there."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            return ask_for("torch", tree)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def ask_for(kind: str, tree: Path) -> dict[str, Any]:
    """Return the counts of the package in a folder, made in a process of its own."""
    paths = os.pathsep.join([str(tree), str(ROOT / "benchmarks")])
    command = [sys.executable, __file__, "--count", kind]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=tree, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(config: CountsBenchmark) -> None:
    """Count, and print what there was before beside what there is."""
    if config.count is not None:
        print(json.dumps(count(config.count)))
        return
    counts = {f"torch, {config.before}": count_before(config.before)}
    counts |= {f"{kind}, now": ask_for(kind, ROOT) for kind in ("torch", "triton")}
    rows = list(dict.fromkeys(name for values in counts.values() for name in values))
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>16}" for name in counts))
    for row in rows:
        values = (values.get(row, "-") for values in counts.values())
        shown = (
            f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if value != "-" else "-" for value in values
        )
        print(f"{row:<{width}}", *(f"{value:>16}" for value in shown))
    if config.out is not None:
        config.out.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, CountsBenchmark)
