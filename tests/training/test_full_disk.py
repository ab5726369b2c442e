"""A disk that is full while a run saves: what was saved stays whole, it is said why, and nothing but room is needed."""

import json
import shutil
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from small_disk import SmallDisk, small_disk
from test_loop import open_loop, rows_with_nan, trainer
from test_matrix import Recorder
from test_pretrain import rows_dir, train_arguments  # noqa: F401 - a fixture

from cobra.models.checkpoint import read_checkpoint
from cobra.models.run_folder import LATEST
from cobra.training.config import PretrainConfig
from cobra.training.preemption import Stopped, StopRequests
from cobra.training.pretrain import pretrain
from cobra.training.run_state import RunSaver, states
from cobra.util.cli import parse
from cobra.util.errors import UserError

FULL = "No space left on device"


class Interrupted(Exception):
    """In place of a kill."""


class Disk(Recorder):
    """Fills the disk when one step is logged and empties it at another, between saves; may end the run."""

    def __init__(self, disk: SmallDisk, fill: int = 0, empty: int = 0, end: int = 0) -> None:
        super().__init__()
        self.disk, self.fill, self.empty, self.end = disk, fill, empty, end
        self.saver: RunSaver

    def commit(self, step, *values, **more):
        if step == self.fill:
            # So that no older state is deleted afterwards.
            assert self.saver.finish() is None
            self.disk.fill()
        if step in (self.empty, self.end) and self.saver._pending is not None:
            wait([self.saver._pending])
        if step == self.empty:
            self.disk.empty()
        if step == self.end:
            raise Interrupted
        return super().commit(step, *values, **more)


def train(folder: Path, recorder: Recorder, resume: Path | None = None, evaluator=None, stop=None, **options) -> None:
    """Take eight steps, in epochs of four; a checkpoint has 5 MB, a state 9 MB."""
    loop = open_loop(trainer(), rows_with_nan(), folder, recorder, evaluator, **options)
    recorder.saver = loop.context.saver
    if resume is not None:
        loop.restore(resume)
    loop.run(stop)


def names(run: Path) -> list[str]:
    return [path.name for path in states(run / "resume")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[tuple[float, float]]:
    """Loss and norm of every step where there is room."""
    recorder = Recorder()
    train(tmp_path_factory.mktemp("undisturbed"), recorder)
    return recorder.steps


def test_states_that_do_not_fit_cost_nothing_but_themselves(tmp_path, capsys, undisturbed):
    with small_disk(tmp_path / "disk", 64_000) as disk:
        run = disk.folder / "run"
        recorder = Disk(disk, fill=5, empty=7)
        train(run, recorder, save_interval_steps=1)
        output = capsys.readouterr().out
        assert output.count("the state of the run could not be saved") == output.count(FULL) == 2
        assert f"the last whole state in {run / 'resume'} is kept" in output
        assert names(run) == ["step-000004", "step-000007"]
        assert len(list((run / "resume").iterdir())) == 2
        assert recorder.steps == undisturbed


def test_a_run_that_ends_on_a_full_disk_goes_on_from_the_last_whole_state(tmp_path, undisturbed):
    with small_disk(tmp_path / "disk", 64_000) as disk:
        run = disk.folder / "run"
        with pytest.raises(Interrupted):
            train(run, Disk(disk, fill=5, end=7), save_interval_steps=1)
        assert names(run) == ["step-000003", "step-000004"]
        disk.empty()
        recorder = Recorder()
        train(run, recorder, resume=run / "resume" / "step-000004")
        assert recorder.steps == undisturbed[4:]


class Looks:
    """Losses on held-out rows as they are given; keeps the projector of every look."""

    def __init__(self, *losses: float) -> None:
        self.losses, self.projectors = iter(losses), []

    def evaluate(self, vlm, *rest):
        self.projectors.append({name: value.clone() for name, value in vlm.projector.state_dict().items()})
        return {"Validation Loss": next(self.losses)}


def test_checkpoints_that_do_not_fit_cost_nothing_but_themselves(tmp_path, capsys, undisturbed):
    """None of the looks on the full disk could be kept: the best is the first one afterwards that beats the first."""
    with small_disk(tmp_path / "disk", 64_000) as disk:
        recorder, looks = Disk(disk, fill=1, empty=5), Looks(5.0, 4.0, 4.5, 4.2, 6.0, 4.8, 4.9, 7.0)
        train(disk.folder, recorder, evaluator=looks, eval_interval_steps=1)
        warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: the checkpoint")]
        assert [line.split(" could not")[0][-6:] for line in warned] == ["step 2", "step 3", "step 4"]
        assert all(FULL in line and "the run goes on" in line for line in warned)
        assert recorder.steps == undisturbed
        files = sorted(path.name for path in (disk.folder / "checkpoints").iterdir())
        assert [name[:11] for name in files] == ["best-checkp", "latest-chec", "step-000008"]
        for name, look in (("best", 5), ("latest", 7)):
            saved = read_checkpoint(disk.folder / "checkpoints" / f"{name}-checkpoint.pt")["projector"]
            assert all(torch.equal(saved[key], value) for key, value in looks.projectors[look].items()), name


def test_a_stop_on_a_full_disk_does_not_claim_a_state(tmp_path):
    with small_disk(tmp_path / "disk", 64_000) as disk:
        with pytest.raises(Stopped) as stopped:
            train(disk.folder, Disk(disk, fill=1), stop=StopRequests(time_limit_minutes=0))
        assert (stopped.value.step, stopped.value.saved, names(disk.folder)) == (1, False, [])
        disk.empty()
        with pytest.raises(Stopped) as stopped:
            train(disk.folder, Recorder(), stop=StopRequests(time_limit_minutes=0))
        assert stopped.value.saved and names(disk.folder) == ["step-000001"]


def align_config(rows_dir: Path, root: Path) -> PretrainConfig:  # noqa: F811
    """Two epochs of five steps whose states, of the projector alone, have 2.3 MB; the checkpoint has 5 MB."""
    rows = json.loads((rows_dir / "rows.json").read_text())
    (root / "rows.json").write_text(json.dumps([row for row in rows if "image" in row]))
    shutil.copytree(rows_dir / "images", root / "images", dirs_exist_ok=True)
    more = ["--stage", "align", "--model.align_global_batch_size", "2", "--model.align_per_device_batch_size", "2"]
    more += ["--model.align_epochs", "2", "--save_interval_steps", "2"]
    return parse(PretrainConfig, train_arguments(root, root, "run", *more))


def test_a_last_checkpoint_that_does_not_fit_is_an_error_and_the_same_command_goes_on(tmp_path, rows_dir, capsys):  # noqa: F811
    with small_disk(tmp_path / "disk", 7_000) as disk:
        run = disk.folder / "run"
        with pytest.raises(UserError, match=rf"step-000010\S+ could not be written.*{FULL}.*the same command again"):
            pretrain(align_config(rows_dir, disk.folder))
        assert not (run / "finished.json").exists() and not any((run / "checkpoints").iterdir())
        # The state that was being written when the error came is whole too.
        assert names(run)[-1] in ("step-000008", "step-000009")
        assert "the checkpoint of step 5 could not be written" in capsys.readouterr().out
        disk.resize(32_000)
        pretrain(align_config(rows_dir, disk.folder))
        assert not (run / "resume").exists()
        whole = pretrain(align_config(rows_dir, tmp_path))
        losses = [
            [json.loads(line)["Align/Loss (Raw)"] for line in (folder / "run.jsonl").read_text().splitlines()]
            for folder in (run, whole)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == 10
        expected = read_checkpoint(whole / LATEST)
        for module, tensors in read_checkpoint(run / LATEST).items():
            assert all(torch.equal(tensor, expected[module][name]) for name, tensor in tensors.items()), module
