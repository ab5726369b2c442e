"""What follows a step: steps that are not finite, saves, looks at held-out rows, and files of a run."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from processes import together
from scratch import scratch_vlm
from test_matrix import Recorder, make_rows

from cobra.training.after_step import step_parts
from cobra.training.config import Hyperparameters
from cobra.training.loop import TrainingLoop
from cobra.training.run_state import RunState, states
from cobra.training.strategy import StepResult, TrainStrategy
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
COLLATOR = PaddedCollatorForLanguageModeling(512, 1, (3, 48, 48))


class Rows(list):
    """Rows that know their ids, as a dataset does."""

    @property
    def examples(self):
        return [{"id": f"id-{number}"} for number in range(len(self))]


def rows_with_nan(*numbers: int) -> Rows:
    rows = Rows(make_rows()[:16])
    for number in numbers:
        rows[number]["pixel_values"]["dino"][0, 5, 5] = float("nan")
    return rows


def trainer(world: World = CPU, steps: int = 8) -> TrainStrategy:
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(1, steps, 4, 4 // world.size, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.0)
    strategy = TrainStrategy(vlm, world, values, enable_gradient_checkpointing=False)
    strategy.run_setup()
    return strategy


def open_loop(strategy, rows, folder: Path, recorder=None, evaluator=None, max_skipped=10, **options) -> TrainingLoop:
    lengths = [(True, len(row["input_ids"])) for row in rows]
    parts = step_parts(recorder, evaluator, **options)
    return TrainingLoop(strategy, rows, COLLATOR, lengths, folder, parts, seed=5, max_skipped=max_skipped)


def train(*arguments, **options):
    return open_loop(*arguments, **options).run()


def train_again(rows, folder: Path, **options) -> TrainStrategy:
    """Train on from the newest state with a fresh model."""
    strategy = trainer()
    loop = open_loop(strategy, rows, folder, **options)
    loop.restore(states(folder / "resume")[-1])
    loop.run()
    return strategy


def test_step_with_a_broken_image_changes_nothing_and_the_run_goes_on(tmp_path, capsys):
    strategy, recorder = trainer(), Recorder()
    train(strategy, rows_with_nan(6), tmp_path, recorder)
    # Two passes over sixteen rows: the row comes twice.
    assert (strategy.global_step, strategy.skipped_steps) == (8, 2)
    assert sum(loss != loss for loss, _ in recorder.steps) == 2
    assert strategy.is_finite()
    assert capsys.readouterr().out.count("changed nothing") == 2


def test_too_many_in_a_row_stop_with_a_state_and_the_rows(tmp_path):
    strategy = trainer()
    with pytest.raises(UserError, match=r"2 steps in a row, up to step 2, .* is saved in .*--max_skipped") as error:
        train(strategy, rows_with_nan(*range(16)), tmp_path, max_skipped=2)
    assert str(error.value).count("(id 'id-") == 4
    assert [path.name for path in states(tmp_path / "resume")] == ["step-000002"]


@pytest.mark.fault("A6")
def test_starting_again_does_not_allow_more_skipped_steps(tmp_path):
    broken = rows_with_nan(*range(16))
    with pytest.raises(UserError, match="3 steps in a row, up to step 3,"):
        train(trainer(), broken, tmp_path, max_skipped=3)
    for step in (4, 5):
        with pytest.raises(UserError, match=f"{step} steps in a row, up to step {step},"):
            train_again(broken, tmp_path, max_skipped=3)
    with pytest.raises(UserError, match="7 steps in a row, up to step 7,"):
        train_again(broken, tmp_path, max_skipped=7)


@pytest.mark.fault("A6")
def test_mended_rows_are_trained_on_after_giving_up(tmp_path):
    with pytest.raises(UserError, match="3 steps in a row"):
        train(trainer(), rows_with_nan(*range(16)), tmp_path, max_skipped=3)
    strategy = train_again(rows_with_nan(), tmp_path, max_skipped=3)
    assert (strategy.global_step, strategy.skipped_steps, strategy.skipped_in_a_row) == (8, 3, 0)


@pytest.mark.fault("A6")
def test_run_of_mostly_skipped_steps_fails_without_a_last_checkpoint(tmp_path):
    with pytest.raises(UserError, match="8 of 8 steps .* the run has failed"):
        train(trainer(), rows_with_nan(*range(16)), tmp_path, max_skipped=100)
    assert not [*tmp_path.glob("checkpoints/step-000008*")]


@pytest.mark.fault("B4")
def test_state_of_weights_that_are_not_finite_is_refused(tmp_path):
    strategy = trainer()
    saver = open_loop(strategy, rows_with_nan(), tmp_path).context.saver
    with torch.no_grad():
        next(strategy.vlm.projector.parameters()).fill_(float("nan"))
    saver.begin(RunState(3, 0, 0))
    saver.finish()
    with pytest.raises(UserError, match="step-000003 holds weights that are not finite numbers: delete that folder"):
        train_again(rows_with_nan(), tmp_path)


@pytest.mark.fault("A12")
def test_state_beyond_the_last_step_is_refused(tmp_path):
    strategy = trainer()
    saver = open_loop(strategy, rows_with_nan(), tmp_path).context.saver
    saver.begin(RunState(9, 0, 0))
    saver.finish()
    with pytest.raises(UserError, match="9 steps are done, and the run has 8: delete that folder"):
        train_again(rows_with_nan(), tmp_path)


@pytest.mark.fault("A12")
@pytest.mark.parametrize(
    "value", [{"loss": "low"}, {"tokens": -1}, {"skipped": 0}, {"images": None}, {"grad_norm": []}]
)
def test_state_of_an_impossible_last_step_is_refused(tmp_path, value):
    loop = open_loop(trainer(), rows_with_nan(), tmp_path)
    last = asdict(StepResult(1.0, 1.0, 5)) | value
    loop.context.saver.begin(RunState(1, 5, 0, unreported=last))
    assert loop.context.saver.finish() is None
    with pytest.raises(UserError, match=f"cannot be read: its {next(iter(value))} is .*Delete that folder"):
        loop.restore(states(tmp_path / "resume")[-1])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    strategy = trainer()
    train(strategy, rows_with_nan(), tmp_path, save_interval_steps=3)
    before = [path.name for path in states(tmp_path / "resume")]
    assert before
    broken = trainer()
    with torch.no_grad():
        next(parameter for parameter in broken.vlm.projector.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the weights are not finite either"):
        train(broken, rows_with_nan(), tmp_path, max_skipped=3, save_interval_steps=100)
    assert [path.name for path in states(tmp_path / "resume")] == before


def test_gradient_alone_that_is_not_finite_names_the_rows_of_the_step(tmp_path):
    strategy = trainer()
    strategy.vlm.projector.projector[0].bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"Each row's loss is finite by itself; the rows were: row \d+ \(id 'id-"):
        train(strategy, rows_with_nan(), tmp_path, max_skipped=1)


def work(world: World, folder: Path) -> None:
    strategy = trainer(world)
    calls = []

    def poison(gradient):
        calls.append(0)
        return gradient * float("nan") if world.rank == 1 and len(calls) == 3 else gradient

    strategy.vlm.llm_backbone.llm.backbone.embedding.register_forward_hook(
        lambda module, inputs, output: output.register_hook(poison) and None
    )
    train(strategy, rows_with_nan(6), folder)
    torch.save((strategy.global_step, strategy.skipped_steps, strategy.is_finite()), folder / f"{world.rank}.pt")


def test_all_processes_skip_what_one_of_them_meets(tmp_path):
    together(2, tmp_path, work, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    steps, skipped, finite = first
    # Twice the image, and once the gradient of the second process, unless that step had the image too.
    assert steps == 8 and skipped in (2, 3) and finite


class Falling:
    """A loss on held-out rows that falls, then rises; once it is not a number."""

    def __init__(self):
        self.losses = iter([float("nan"), 2.0, 2.5, 4.0])

    def evaluate(self, *args):
        return {"Validation Loss": next(self.losses)}


def test_best_by_validation_loss_is_kept(tmp_path):
    strategy = trainer()
    train(strategy, rows_with_nan(), tmp_path, evaluator=Falling(), eval_interval_steps=2)
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:11] for name in files] == ["best-checkp", "latest-chec", "step-000004", "step-000008"]
    best, latest = (tmp_path / "checkpoints" / f"{name}-checkpoint.pt" for name in ("best", "latest"))
    # The second look, at step 4, was the best.
    assert best.samefile(tmp_path / "checkpoints" / files[2]) and latest.samefile(tmp_path / "checkpoints" / files[3])
