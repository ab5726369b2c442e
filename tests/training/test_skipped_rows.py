"""Runs over rows whose image is bad: they go on, say how many rows taught nothing, and keep the order of the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scratch import scratch_run

from cobra.models.checkpoint import read_checkpoint
from cobra.training.pretrain import PretrainConfig, pretrain
from cobra.util.cli import parse, run

ROOT = Path(__file__).parents[2]


def arguments(folder, run_id, *more):
    sizes = ("--model.finetune_epochs", "2", "--model.finetune_global_batch_size", "4")
    per_device = ("--model.finetune_per_device_batch_size", "2")
    return scratch_run(folder, run_id, "--dataset.on_bad_image", "skip", *sizes, *per_device, *more)


def metrics(folder, run_id):
    lines = (folder / "runs" / run_id / f"{run_id}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def torchrun(folder, run_id):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = arguments(folder, run_id, "--num_workers", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "scripts/pretrain.py", *more], cwd=ROOT, env=environment, check=True)


def run_here(folder, run_id, *more):
    pretrain(parse(PretrainConfig, arguments(folder, run_id, *more)))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_images_are_counted_over_processes_workers_and_epochs(folder, capfd, processes):
    (folder / "images" / "2.png").unlink()
    (folder / "images" / "5.png").write_text("not a picture")
    if processes == 2:
        torchrun(folder, "bad")
    else:
        run_here(folder, "bad", "--num_workers", "2")
    output = capfd.readouterr()
    assert output.out.count("warning: 2 of 8 rows had a missing or unreadable image") == 1
    for row_id, image in ((2, "2.png"), (5, "5.png")):
        named = [line for line in output.err.splitlines() if f"(id {row_id})" in line]
        # Once by each worker that met it.
        assert 1 <= len(named) <= 2
        assert all("warning: a row is skipped" in line and image in line for line in named)
    steps = metrics(folder, "bad")
    assert len(steps) == 4
    assert sum(step["Finetune/Tokens"] for step in steps[:2]) == sum(step["Finetune/Tokens"] for step in steps[2:])


def test_other_rows_keep_their_place(folder):
    run_here(folder, "whole")
    whole = metrics(folder, "whole")
    (folder / "images" / "3.png").unlink()
    run_here(folder, "skipped")
    missing = [
        before["Finetune/Tokens"] - after["Finetune/Tokens"]
        for before, after in zip(whole, metrics(folder, "skipped"), strict=True)
    ]
    # One step of each epoch has the row, and only that step has fewer tokens.
    assert sorted(count > 0 for count in missing) == [False, False, True, True]
    assert sorted(missing)[2] == sorted(missing)[3]


def test_a_run_without_one_good_image_does_not_move_the_weights(folder, capsys):
    for image in (folder / "images").iterdir():
        image.write_text("not a picture")
    run_here(folder, "blank", "--model.finetune_weight_decay", "0")
    assert "warning: 8 of 8 rows" in capsys.readouterr().out
    assert [(step["Finetune/Loss (Raw)"], step["Finetune/Tokens"]) for step in metrics(folder, "blank")] == [(0, 0)] * 4
    checkpoint = read_checkpoint(folder / "runs" / "blank" / "checkpoints" / "latest-checkpoint.pt")
    run_here(folder, "shorter", "--model.finetune_weight_decay", "0", "--model.finetune_max_steps", "1")
    shorter = read_checkpoint(folder / "runs" / "shorter" / "checkpoints" / "latest-checkpoint.pt")
    for module, tensors in checkpoint.items():
        for name, tensor in tensors.items():
            assert torch.isfinite(tensor).all() and torch.equal(tensor, shorter[module][name])


@pytest.mark.parametrize(
    ("flag", "known"), [("--dataset.on_bad_image", "raise, skip"), ("--dataset.truncation", "right, drop")]
)
def test_unknown_options_are_refused_before_the_model_is_built(folder, capsys, monkeypatch, flag, known):
    monkeypatch.setattr("cobra.training.pretrain.build_vlm", pytest.fail)
    with pytest.raises(SystemExit) as stop:
        run(pretrain, PretrainConfig, arguments(folder, "bad", flag, "sometimes"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"{flag} 'sometimes' is unknown; the known ones are: {known}" in error
    assert not (folder / "runs").exists()


def test_rows_left_out_are_told(folder, capsys):
    run_here(folder, "dropped", "--dataset.truncation", "drop", "--model.llm_max_length", "24")
    assert "of 8 rows left out: their last CONCLUSION ends beyond 24 tokens" in capsys.readouterr().out
