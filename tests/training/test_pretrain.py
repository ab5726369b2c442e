"""Runs of scripts/pretrain.py as a user starts them: alone, through torchrun, with accumulation, and with bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_run import ForkedStart

import cobra
from cobra.models.checkpoint import read_checkpoint
from cobra.models.vlms import CobraVLM
from cobra.util.numbers import counted

ROOT = Path(__file__).parents[2]
SCRATCH = [
    "--model.vision_backbone_id",
    "dinosiglip-vit-tiny-48px-init",
    "--model.llm_backbone_id",
    "mamba-0.5m-init-zephyr",
]


@pytest.fixture(scope="module")
def rows_dir(tmp_path_factory) -> Path:
    """Rows of very uneven lengths, one of them of text only, with small pictures."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "images").mkdir()
    rows = []
    for index in range(11):
        turns = [
            {"from": "human", "value": "What is in the picture?"},
            {"from": "gpt", "value": "A red circle. " * (1 + 3 * (index % 4))},
        ]
        row = {"id": f"row-{index}", "conversations": turns}
        if index != 4:
            row["image"] = f"{index}.png"
            Image.new("RGB", (48, 48), (20 * index, 255 - 20 * index, 90)).save(folder / "images" / row["image"])
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def launch(arguments: list[str], processes: int = 1, **environment: str) -> subprocess.Popen:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*start, "scripts/pretrain.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_arguments(rows_dir: Path, run_root: Path, run_id: str, *more: str) -> list[str]:
    return [
        *("--model.type", "cobra-tiny", *SCRATCH),
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(rows_dir)),
        *("--run_root_dir", str(run_root), "--run_id", run_id, "--device", "cpu"),
        *("--model.finetune_global_batch_size", "4", "--model.finetune_learning_rate", "3e-4"),
        *more,
    ]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / f"{run_dir.name}.jsonl").read_text().splitlines()
    return [json.loads(line)["Finetune/Loss (Raw)"] for line in lines]


@pytest.fixture(scope="module")
def runs(rows_dir, tmp_path_factory) -> Path:
    """Ten steps on the same data by one process, by two through torchrun, and by one in two passes."""
    root = tmp_path_factory.mktemp("runs")
    steps = ["--model.finetune_max_steps", "10", "--model.finetune_per_device_batch_size"]
    two = launch(train_arguments(rows_dir, root, "two", *steps, "2"), processes=2)
    for name, rows in (("one", "4"), ("accumulated", "2")):
        start = ForkedStart(train_arguments(rows_dir, root, name, *steps, rows), 1, root / "records" / name)
        code, output = start.end()
        assert code == 0, f"{name}:\n{output}"
    output, _ = two.communicate()
    assert two.returncode == 0, output
    return root


@pytest.mark.parametrize("other", ["two", "accumulated"])
def test_loss_does_not_depend_on_how_rows_are_spread(runs, other):
    expected = losses(runs / "one")
    assert len(expected) == 10
    assert losses(runs / other) == pytest.approx(expected, rel=1e-5)


def test_run_directory_has_cobras_files(runs, rows_dir):
    run = runs / "two"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    steps = {name for name in names if name.startswith("checkpoints/step-")}
    assert {"config.json", "config.yaml", "run-metrics.jsonl", "two.jsonl", "provenance.json"} < names
    assert "checkpoints/latest-checkpoint.pt" in names
    # Four batches an epoch: ten steps end in the third.
    assert sorted(name[:36] for name in steps) == [
        "checkpoints/step-000004-epoch-01-los",
        "checkpoints/step-000008-epoch-02-los",
        "checkpoints/step-000010-epoch-03-los",
    ]
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["processes"] == 2
    assert provenance["data"]["rows"] == 11
    assert len(provenance["data"]["sha256"]) == 64
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]


def test_checkpoints_of_one_and_two_processes_agree(runs):
    one, two = (read_checkpoint(runs / name / "checkpoints" / "latest-checkpoint.pt") for name in ("one", "two"))
    # The tied head is written once, gathered from shards or not.
    sizes = [(runs / name / "checkpoints" / "latest-checkpoint.pt").stat().st_size for name in ("one", "two")]
    assert abs(sizes[0] - sizes[1]) < 10_000
    # The towers are frozen, and random ones that no other file holds.
    assert list(one) == list(two) == ["vision_backbone", "llm_backbone", "projector"]
    for module, tensors in one.items():
        assert tensors.keys() == two[module].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(two[module][name], tensor, rtol=0, atol=2e-5)


def test_trained_run_loads_and_answers(runs, rows_dir):
    vlm = cobra.load(runs / "two", device="cpu")
    assert isinstance(vlm, CobraVLM)
    assert not vlm.is_stock
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What is in the picture?")
    with Image.open(rows_dir / "images" / "0.png") as image:
        assert isinstance(vlm.generate(image, builder.get_prompt(), max_new_tokens=4), str)


def test_training_goes_on_from_a_run_directory(runs, rows_dir, tmp_path):
    arguments = train_arguments(
        rows_dir,
        tmp_path,
        "next",
        *("--pretrained_checkpoint", str(runs / "one"), "--model.finetune_max_steps", "1"),
        *("--model.finetune_per_device_batch_size", "4"),
    )
    code, output = ForkedStart(arguments, 1, tmp_path / "record").end()
    assert code == 0, output
    assert "loaded from" in output
    assert "vision_backbone, llm_backbone, projector" in output
    # The weights of step 10, not of a new model.
    assert losses(tmp_path / "next")[0] < losses(runs / "one")[0] - 0.5


def test_a_finished_run_is_not_overwritten(runs, rows_dir, tmp_path):
    before = (runs / "one" / "one.jsonl").read_bytes()
    arguments = train_arguments(rows_dir, runs, "one", "--model.finetune_per_device_batch_size", "4")
    code, output = ForkedStart(arguments, 1, tmp_path / "record").end()
    assert code == 2
    assert "--run_id" in output
    assert (runs / "one" / "one.jsonl").read_bytes() == before


BAD_INPUT = {
    "batch": (["--model.finetune_per_device_batch_size", "3"], "per_device_batch_size 2"),
    "model": (["--model.type", "cobra-huge"], "cobra-tiny"),
    "dataset": (["--dataset.type", "llava-v99"], "llava-cot-100k"),
    "stage": (["--stage", "polish"], "full-finetune"),
    "annotation": (["--dataset.finetune_stage_components", "[absent.json, images]"], "absent.json"),
    "images": (["--dataset.finetune_stage_components", "[rows.json, nowhere]"], "nowhere"),
    "checkpoint": (["--pretrained_checkpoint", "no/such/run"], "nor a known model; the known ones are"),
    "flag": (["--learning_rate", "1"], "--learning_rate"),
    "tracker": (["--trackers", "[mlflow]"], "jsonl, wandb"),
    "schedule": (["--model.finetune_lr_scheduler_type", "step"], "linear-warmup+cosine-decay"),
    "rate": (["--model.finetune_learning_rate", "-1"], "--model.finetune_learning_rate"),
    "warm-up": (["--model.finetune_warmup_ratio", "3"], "in [0, 1]"),
    "strategy": (["--model.finetune_train_strategy", "ddp3"], "fsdp-full-shard"),
    "architecture": (["--model.arch_specifier", "no-align+conv"], "fused-gelu-mlp"),
}
if not torch.cuda.is_available():
    BAD_INPUT["cuda"] = (["--device", "cuda"], "--device cpu")


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, rows_dir, tmp_path, capsys):
    from cobra.training.pretrain import PretrainConfig, pretrain
    from cobra.util.cli import run

    more, expected = BAD_INPUT[case]
    arguments = train_arguments(rows_dir, tmp_path, "bad", "--model.finetune_per_device_batch_size", "4")
    for flag, value in zip(more[::2], more[1::2], strict=True):
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += [flag, value]
    with pytest.raises(SystemExit) as stop:
        run(pretrain, PretrainConfig, arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert expected in error
    assert list(tmp_path.iterdir()) == []


def test_an_aligned_architecture_without_its_align_run_says_so(rows_dir, tmp_path, capsys):
    from cobra.training.pretrain import PretrainConfig, pretrain
    from cobra.util.cli import run

    arguments = train_arguments(rows_dir, tmp_path, "bad", "--model.arch_specifier", "gelu-mlp")
    with pytest.raises(SystemExit) as stop:
        run(pretrain, PretrainConfig, [*arguments, "--model.finetune_per_device_batch_size", "4"])
    assert stop.value.code == 2
    assert "--stage align" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cot_root(rows_dir, tmp_path_factory) -> Path:
    """A prepared LLaVA-CoT-100k of eleven rows, five of them held out."""
    root = tmp_path_factory.mktemp("cot")
    folder = root / "download" / "llava-cot-100k"
    folder.mkdir(parents=True)
    for image in (rows_dir / "images").iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    rows = json.loads((rows_dir / "rows.json").read_text())
    (folder / "llava_cot_100k.json").write_text(json.dumps(rows[5:]))
    (folder / "llava_cot_100k_holdout.json").write_text(json.dumps(rows[:5]))
    return root


@pytest.mark.slow
@pytest.mark.fault("E4")
def test_loss_on_held_out_rows_is_that_of_the_checkpoint_on_any_number_of_processes(cot_root, tmp_path):
    held_out = {}
    for processes in (1, 2):
        arguments = [
            *("--model.type", "cobra-tiny", *SCRATCH, "--device", "cpu", "--run_root_dir", str(tmp_path)),
            *("--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(cot_root)),
            *("--model.finetune_global_batch_size", "2", "--model.finetune_per_device_batch_size", "1"),
            *("--model.finetune_epochs", "2", "--run_id", f"of-{processes}"),
        ]
        process = launch(arguments, processes)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert "5 held-out rows in" in output and output.count("held-out rows: loss") == 2
        # With a checkpoint and a state at the end of each epoch.
        assert "arning" not in output and f"in {counted(processes, 'process')} on cpu" in output
        lines = (tmp_path / f"of-{processes}" / f"of-{processes}.jsonl").read_text().splitlines()
        values = [json.loads(line) for line in lines]
        # Of three batches an epoch, the last one has the loss.
        assert ["Finetune/Validation Loss" in line for line in values] == [False, False, True] * 2
        held_out[processes] = [values[step]["Finetune/Validation Loss"] for step in (2, 5)]
    assert held_out[2] == pytest.approx(held_out[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.fault("E11")
def test_adapters_train_save_resume_and_load(rows_dir, tmp_path):
    """LoRA through the command line, on two processes: only adapters and projector are saved, and the run answers."""
    arguments = [
        *("--model.type", "cobra-tiny", "--device", "cpu", "--run_root_dir", str(tmp_path), "--run_id", "adapted"),
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(rows_dir), "--lora.rank", "4"),
        *("--pretrained_checkpoint", "cobra-tiny", "--model.finetune_global_batch_size", "4"),
        *("--model.finetune_per_device_batch_size", "2", "--model.finetune_max_steps", "6"),
    ]
    process = launch([*arguments, "--time_limit", "0.0001"], 2)
    output, _ = process.communicate()
    assert process.returncode != 0 and "stopped by the time limit after step 1" in output, output
    assert "llm_backbone 0.54 M (frozen), LoRA adapters on llm_backbone 0.0" in output
    process = launch(arguments, 2)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    run = tmp_path / "adapted"
    assert f"resuming the run {run} after step 1, from its state {run / 'resume' / 'step-000001'}" in output
    saved = torch.load(tmp_path / "adapted" / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]
    assert set(saved) == {"projector", "lora"}
    vlm, before = cobra.load(tmp_path / "adapted", device="cpu"), cobra.load("cobra-tiny", device="cpu")
    weights, frozen = vlm.llm_backbone.state_dict(), before.llm_backbone.state_dict()
    changed = {name.rpartition("mixer.")[2] for name in weights if not torch.equal(weights[name], frozen[name])}
    assert changed == {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}


def test_share_of_the_peak_is_reported_where_the_device_has_one(rows_dir, tmp_path, monkeypatch):
    from cobra.training import pretrain
    from cobra.util.cli import run

    monkeypatch.setattr(pretrain, "_peak_flops", lambda world: 1e12 * world.size)
    more = ["--model.finetune_max_steps", "2", "--model.finetune_per_device_batch_size", "4"]
    arguments = train_arguments(rows_dir, tmp_path, "mfu", *more)
    with pytest.raises(SystemExit):
        run(pretrain.pretrain, pretrain.PretrainConfig, arguments)
    shares = [json.loads(line)["Finetune/MFU"] for line in (tmp_path / "mfu" / "mfu.jsonl").read_text().splitlines()]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)


def test_dry_run_plans_and_writes_nothing(rows_dir, tmp_path):
    arguments = train_arguments(rows_dir, tmp_path / "runs", "planned", "--model.finetune_per_device_batch_size", "4")
    code, output = ForkedStart([*arguments, "--dry_run", "true"], 1, tmp_path / "record").end()
    assert code == 0 and "Plan of cobra-tiny, stage finetune" in output, output
    assert not (tmp_path / "runs").exists()
