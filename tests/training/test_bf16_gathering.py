"""Parameters that are gathered in bf16, as on CUDA: what stays exact, the bytes, and fp32 weights beneath."""

from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm
from test_matrix import make_rows
from torch.utils._python_dispatch import TorchDispatchMode

from cobra.training.config import Hyperparameters
from cobra.training.strategy import TrainStrategy
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World

ROWS, STEPS = 4, 2
EXACT = ("A_log", "D", "dt_proj.bias", "norm.weight")


def make_trainer(world: World, half: bool, **options) -> TrainStrategy:
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(
        epochs=1,
        max_steps=STEPS,
        global_batch_size=ROWS,
        per_device_batch_size=ROWS // 2,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="linear-warmup+cosine-decay",
        warmup_ratio=0.0,
    )
    trainer = TrainStrategy(vlm, world, values, **options)
    # As on CUDA.
    trainer.mixed_precision = half
    if half and not options.get("reduce_in_full_precision"):
        trainer.reduce_dtype = torch.bfloat16
    trainer.run_setup()
    return trainer


def step(trainer: TrainStrategy, number: int) -> tuple[float, float]:
    collator = PaddedCollatorForLanguageModeling(512, 1, (3, 48, 48))
    rows = make_rows()[number * ROWS : (number + 1) * ROWS]
    passes = [collator(rows[:2]), collator(rows[2:])]
    world = trainer.world
    result = trainer.train_step(passes if world.size == 1 else [passes[world.rank]], 1e-3)
    return result.loss, result.grad_norm


class Collectives(TorchDispatchMode):
    """Bytes that are gathered, and those of gradients that are reduced, by their dtype."""

    def __init__(self):
        super().__init__()
        self.gathered, self.reduced = 0, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.c10d._allgather_base_.default:
            self.gathered += args[0].nbytes
        elif operation is torch.ops.c10d._reduce_scatter_base_.default:
            dtype, size = args[1].dtype, args[1].nbytes
            self.reduced[dtype] = self.reduced.get(dtype, 0) + size
        return operation(*args, **(kwargs or {}))


def work(world: World, folder: Path) -> None:
    found = {}
    for half, full, policy in ((False, True, "all"), (True, False, "all"), (True, True, "scan")):
        trainer = make_trainer(world, half, reduce_in_full_precision=full)
        trainer.vlm.llm_backbone.llm.recompute = policy
        dtypes = {}
        block = trainer.vlm.llm_backbone.llm.backbone.layers[0]

        def note(module, args, dtypes=dtypes, block=block):
            dtypes |= {name: value.dtype for name, value in block.named_parameters()}

        block.mixer.in_proj.register_forward_pre_hook(note)
        with Collectives() as sizes:
            steps = [step(trainer, number) for number in range(STEPS)]
        kinds = {value.dtype for value in trainer.vlm.parameters() if value.requires_grad}
        moments = {value.dtype for state in trainer.optimizer.state.values() for value in state.values()}
        whole = {name: value.full_tensor() for name, value in trainer.vlm.projector.named_parameters()}
        found[half, full] = {
            **{
                "steps": steps,
                "dtypes": dtypes,
                "gathered": sizes.gathered,
                "reduced": sizes.reduced,
                "masters": kinds,
                "moments": moments,
            },
            "names": [name for name, _ in trainer.vlm.named_parameters()],
            "projector": whole,
        }
    if world.is_main:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gathered")
    together(2, folder, work, folder)
    return torch.load(folder / "found.pt", weights_only=False)


def test_two_processes_that_gather_bf16_train_as_one(found):
    expected = make_trainer(World(0, 1, torch.device("cpu")), True)
    steps = [step(expected, number) for number in range(STEPS)]
    for key in ((True, False), (True, True)):
        for pair, wanted in zip(found[key]["steps"], steps, strict=True):
            assert pair == pytest.approx(wanted, rel=2e-2), key


def test_decays_skips_and_step_biases_stay_exact_and_masters_are_fp32(found):
    for (half, _), run in found.items():
        for name, dtype in run["dtypes"].items():
            exact = not half or name.endswith(EXACT)
            assert dtype == (torch.float32 if exact else torch.bfloat16), name
        assert run["masters"] == run["moments"] == {torch.float32}
    assert len({tuple(run["names"]) for run in found.values()}) == 1


def test_half_as_much_is_gathered_and_gradients_are_reduced_as_asked(found):
    whole, rounded, full = (found[key] for key in ((False, True), (True, False), (True, True)))
    assert 0 < rounded["gathered"] == full["gathered"] <= 0.55 * whole["gathered"]
    assert whole["reduced"] == full["reduced"]
    [(kind, size)] = full["reduced"].items()
    assert kind == torch.float32 and rounded["reduced"] == {torch.bfloat16: pytest.approx(size / 2, rel=0.01)}
