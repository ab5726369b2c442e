"""Plans of whole runs: what they say of rows, batches, disk and time, what they warn of, and what they refuse."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from cobra.training.config import LoraConfig, PretrainConfig
from cobra.training.flops import count_flops, flops_per_step
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.planning.plan import make_plan, show_plan
from cobra.training.pretrain import pretrain
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.cli import parse
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = 23


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows of uneven lengths; every fifth is of text only, and one is longer than the model takes."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "images").mkdir()
    Image.new("RGB", (48, 48)).save(folder / "images" / "one.png")
    rows = []
    for index in range(ROWS):
        words = "A red circle. " * (400 if index == 7 else 1 + index % 6)
        answer = f"<SUMMARY> See. </SUMMARY>\n\n<CONCLUSION> {words}</CONCLUSION>"
        turns = [{"from": "human", "value": "What is in the picture?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": index, "conversations": turns} | ({} if index % 5 == 0 else {"image": "one.png"}))
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "holdout.json").write_text(json.dumps(rows[:3]))
    return folder


def configure(data: Path, *more: str) -> PretrainConfig:
    flags = ("--dataset.type", "custom", "--dataset.dataset_root_dir", str(data), "--model.type", "cobra-tiny")
    batches = ("--model.finetune_global_batch_size", "8", "--model.finetune_per_device_batch_size", "2")
    return parse(PretrainConfig, [*flags, *batches, "--run_root_dir", str(data / "runs"), *more])


def plan_of(data: Path, *more: str):
    config = configure(data, *more)
    return make_plan(config, config.run_root_dir / "a-run")


def warned(data: Path, *more: str) -> str:
    return "\n".join(plan_of(data, *more).warnings)


def test_steps_are_those_of_the_sampler_and_the_flags(data):
    plan = plan_of(data, "--plan.world_size", "2", "--model.finetune_epochs", "3")
    # 18 rows with an image and 5 of text, in batches of 8: 3 and 1.
    assert (plan.steps.world_size, plan.steps.accumulation_steps) == (2, 2)
    assert (plan.steps.batches_per_epoch, plan.steps.total_steps, plan.steps.epochs) == (4, 12, 3)
    assert plan_of(data, "--model.finetune_max_steps", "5").steps.total_steps == 5


def test_positions_are_those_that_the_passes_of_an_epoch_read(data):
    """Every pass is as long as its longest row; what fills the last batches is computed, too."""
    plan = plan_of(data, "--plan.world_size", "2")
    rows = plan.rows
    lengths = list(zip(rows.has_image.tolist(), rows.lengths.tolist(), strict=True))
    positions = images = tokens = 0
    for rank in range(2):
        order = list(SplitModalitySampler(lengths, lengths, 8, 2, rank, seed=7))
        for begin in range(0, len(order), 2):
            one = order[begin : begin + 2]
            positions += 2 * max(int(rows.tokens[row]) + 9 * bool(rows.has_image[row]) for row in one)
            images += sum(bool(rows.has_image[row]) for row in one)
            tokens += sum(int(rows.tokens[row]) for row in one)
    assert (plan.epoch.positions, plan.epoch.images, plan.epoch.tokens) == (positions, images, tokens)
    assert plan.longest == 512 + 9


def test_tokens_are_counted_as_training_makes_them(data):
    from cobra.models.load import get_llm_backbone_and_tokenizer
    from cobra.preprocessing.datasets import FinetuneDataset

    backbone, tokenizer = get_llm_backbone_and_tokenizer("mamba-0.5m-zephyr", 512)
    dataset = FinetuneDataset(
        data / "rows.json", data / "images", lambda image: None, tokenizer, backbone.prompt_builder_fn
    )
    plan = plan_of(data)
    assert plan.rows.source == "counted by the model's tokenizer"
    assert plan.rows.tokens.tolist() == [len(dataset[index]["input_ids"]) for index in range(ROWS)]
    assert (plan.rows.longer, plan.rows.conclusion_cut, plan.rows.left_out) == (1, 1, 0)


def test_rows_that_truncation_leaves_out_are_not_counted(data):
    plan = plan_of(data, "--dataset.truncation", "drop")
    assert (len(plan.rows.tokens), plan.rows.left_out, plan.rows.conclusion_cut) == (ROWS - 1, 1, 0)
    assert ": 1 row" in "\n".join(plan.warnings)


@pytest.mark.fault("F4")
@pytest.mark.parametrize(("name", "words"), [("no-answer", "a question and no answer"), ("empty-answer", "is empty")])
def test_rows_with_nothing_to_learn_stop_the_plan(tmp_path, name, words):
    folder = shutil.copytree(Path(__file__).parents[1] / "faults" / name, tmp_path / "rows")
    with pytest.raises(UserError, match=words):
        plan_of(folder)


def test_tokens_are_estimated_where_the_tokenizer_is_not_at_hand(data, monkeypatch):
    monkeypatch.setattr("cobra.training.planning.row_lengths.try_to_load_from_cache", lambda *names: None)
    plan = plan_of(data, "--model.llm_backbone_id", "mamba-1.4b")
    assert "estimated" in plan.rows.source and plan.rows.conclusion_cut is None
    # 5 words of the question and 11 of the answer at 1.4 tokens, and 5 for each of two turns.
    assert plan.rows.tokens[1] == 33


def test_published_numbers_take_the_place_of_rows_that_are_not_there(tmp_path):
    flags = ["--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(tmp_path)]
    config = parse(PretrainConfig, [*flags, "--plan.world_size", "8"])
    plan = make_plan(config, tmp_path / "run")
    assert plan.steps.batches_per_epoch == -(-99_000 // 128) and plan.steps.total_steps == 2 * 774
    assert "published number of rows" in plan.rows.source
    assert "python fine_tune/prepare_llava_cot.py" in plan.warnings[0]
    with pytest.raises(UserError, match="annotation file of custom"):
        plan_of(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plan.world_size", "3"], "does not divide into forward passes .* use --model.finetune_global_batch_size"),
        (["--plan.world_size", "0"], "--plan.world_size is 0"),
        (["--plan.utilisation", "35"], "--plan.utilisation is 35"),
        (["--model.finetune_train_strategy", "magic"], "train strategy 'magic' is unknown"),
        (["--sharding_group_size", "3", "--plan.world_size", "4"], "--sharding_group_size 3 does not divide"),
        (["--stage", "fine"], "stage 'fine' is unknown"),
        (["--model.finetune_learning_rate", "0"], "--model.finetune_learning_rate is 0"),
        (["--pretrained_checkpoint", "nowhere.pt"], "'nowhere.pt' is neither a run directory"),
        (["--model.arch_specifier", "fused-gelu-mlp"], "needs a projector from its align stage"),
        (["--keep_checkpoints", "0"], "--keep_checkpoints is 0"),
    ],
)
def test_what_would_stop_the_run_stops_the_plan(data, flags, words):
    with pytest.raises(UserError, match=words):
        plan_of(data, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "cut at 512 tokens within their last CONCLUSION: 1 of 23 rows"),
        ([], "no --pretrained_checkpoint"),
        ([], "no held-out rows"),
        (["--model.finetune_max_steps", "5"], "max_steps 5 is given, so that the 2 epochs play no part"),
        (["--model.finetune_global_batch_size", "64"], "a step takes 64 rows and there are 23"),
        (["--plan.gpu_memory", "0.1"], "do not fit a GPU of 0.1 GiB"),
        (["--save_interval_minutes", "null"], "state is never saved"),
    ],
)
def test_what_would_surprise_is_told(data, flags, words):
    assert words in warned(data, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are tried")
def test_kernels_that_cannot_be_tried_are_told(data):
    assert "there is no GPU here, so that the kernels of Mamba could not be tried" in warned(data)


def test_kernels_that_do_not_work_are_told(data, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("cobra.training.planning.warnings.gpu_failure", lambda index: "no kernel image")
    plan = plan_of(data)
    assert "do not work here (no kernel image)" in plan.warnings[-1]
    assert plan.work.peak_tflops == 989.4


def test_what_is_in_order_is_not_told(data, tmp_path):
    flags = ["--pretrained_checkpoint", "cobra-tiny", "--device", "cpu", "--model.llm_max_length", "4096"]
    assert warned(data, *flags, "--dataset.holdout_components", "[holdout.json, images]") == ""


def test_a_larger_batch_than_fits_names_one_that_does(data):
    flags = ["--model.finetune_global_batch_size", "512", "--model.finetune_per_device_batch_size", "512"]
    plan = plan_of(data, *flags, "--plan.gpu_memory", "2")
    rows = plan.variants[0].largest_rows
    found = "\n".join(plan.warnings)
    assert 1 < rows < 512 and f"--model.finetune_per_device_batch_size {rows}; the result is the same" in found


def test_a_model_that_cannot_fit_names_other_ways(data):
    kept = ["--model.type", "cobra+3b", "--model.enable_gradient_checkpointing", "false", "--plan.world_size", "4"]
    assert "enable_gradient_checkpointing true and" in warned(data, *kept, "--plan.gpu_memory", "22")
    assert "--lora.rank 16" in warned(data, *kept, "--plan.gpu_memory", "10")


def test_disk_is_told_and_found_too_small(data, monkeypatch):
    plan = plan_of(data)
    # Projector and language model in fp32; both moments beside them.
    assert plan.disk.weights == 2_754_048 and plan.disk.state == 3 * plan.disk.weights
    assert plan.disk.total == 3 * plan.disk.weights + 3 * plan.disk.state
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9))
    assert "checkpoints may take" in warned(data)


def test_a_checkpoint_that_lies_in_the_run_directory_is_told(data, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest-checkpoint.pt").touch()
    config = configure(data)
    plan = make_plan(config, tmp_path)
    assert f"the run would stop here: the run {tmp_path} has a checkpoint already" in "\n".join(plan.warnings)


def test_hours_follow_from_operations_peak_and_utilisation(data):
    flags = ["--plan.world_size", "2", "--plan.peak_tflops", "100", "--plan.utilisation", "0.5"]
    plan = plan_of(data, *flags, "--model.enable_gradient_checkpointing", "true")
    vlm = build_meta_model(configure(data).model, "finetune", LoraConfig())
    step = flops_per_step(count_flops(vlm), plan.epoch.images / 4, plan.epoch.positions / 4, plan.epoch.tokens / 4)
    assert plan.work.step == pytest.approx(step)
    expected = (plan.work.step + plan.work.recomputed) * plan.steps.total_steps / (2 * 100e12 * 0.5) / 3600
    # All but the scan and the first product of a block.
    assert plan.work.hours == pytest.approx(expected) and 0 < plan.work.recomputed < 0.02 * plan.work.step
    assert plan_of(data, "--device", "cpu").work.hours is None


def test_the_plan_is_printed_and_written_as_json(data, tmp_path):
    config = configure(data, "--plan.json_file", str(tmp_path / "plan.json"), "--lora.rank", "4")
    with (tmp_path / "shown.txt").open("w") as file:
        plan = show_plan(config, tmp_path / "run", Console(file=file, width=100))
    shown, values = (tmp_path / "shown.txt").read_text(), json.loads((tmp_path / "plan.json").read_text())
    for words in ("vision tower dino", "Adam's two moments", "GPU hours", "an assumption", "warning: "):
        assert words in shown
    assert values["variants"][0]["memory"]["total"] == plan.variants[0].memory.total
    assert values["rows"]["count"] == ROWS and values["warnings"] == plan.warnings
    # Adapters are trained, the matrices under them are not.
    blocks = next(part for part in values["parts"] if part["name"] == "4 Mamba blocks")
    assert 0 < blocks["trained"] < 0.1 * blocks["parameters"]


def test_align_rows_are_planned_from_their_words(data):
    rows = json.loads((data / "rows.json").read_text())
    (data / "align.json").write_text(json.dumps([row for row in rows if "image" in row]))
    flags = ["--stage", "align", "--dataset.align_stage_components", "[align.json, images]"]
    plan = plan_of(data, *flags, "--model.align_global_batch_size", "4", "--model.align_per_device_batch_size", "4")
    assert plan.steps.batches_per_epoch == 5 and "estimated" in plan.rows.source
    assert [part.name for part in plan.parts if part.trained] == ["projector"]
    # Patches count, as in training.
    assert plan.rows.lengths[0] == len(" ".join(t["value"] for t in rows[1]["conversations"]).split()) + 9


def test_a_plan_for_eight_gpus_is_quick_and_small(tmp_path):
    flags = ["--dry_run", "true", "--model.type", "cobra+3b", "--dataset.type", "llava-cot-100k"]
    machine = ["--plan.world_size", "8", "--plan.gpu_memory", "80", "--dataset.dataset_root_dir", str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "scripts/pretrain.py", *flags, *machine, "--run_root_dir", str(tmp_path / "runs")]
    # A program's peak counts that of the process it was forked from, and pytest's own may be over the limit: a small
    # one starts it.
    start = "import resource as r, subprocess as s, sys; code = s.run(sys.argv[1:]).returncode"
    start += "; print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", start, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    seconds, (output, peak_kib) = time.monotonic() - began, done.stdout.rstrip().rsplit("\n", 1)
    assert done.returncode == 0 and "Plan of cobra+3b, stage finetune, on 8 x cuda" in output, output
    assert seconds < 60 and int(peak_kib) * 1024 < 4e9
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("E8")
def test_a_plan_is_made_whatever_lies_in_the_run_directory(data, tmp_path, capsys):
    flags = ("--run_root_dir", str(tmp_path), "--dry_run", "--device", "cpu")
    run_dir = tmp_path / "custom+cobra-tiny+stage-finetune+x7"
    run_dir.mkdir()
    (run_dir / "finished.json").touch()
    # Rows of another file have the same name by default.
    assert pretrain(configure(data, *flags)) == run_dir
    told = capsys.readouterr().out
    assert f"the run would stop here: the run {run_dir} is finished" in told
    assert f"--run_id {run_dir.name}-2" in told
    with pytest.raises(UserError, match=rf"is finished: .*--run_id {re.escape(run_dir.name)}-2"):
        pretrain(configure(data, *flags[:2]))
    pretrain(configure(data, *flags, "--run_id", f"{run_dir.name}-2"))
    assert "would stop here" not in capsys.readouterr().out
