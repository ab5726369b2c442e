"""Mistakes at the command line: each ends with one paragraph that names the fault and the way out, and with code 2."""

import json
import runpy
import shlex
import socket
import subprocess
import sys

import pytest
from PIL import Image

from cobra.__main__ import main
from cobra.preprocessing import fetch, transfer

TRAIN = (
    "train --model.type cobra-tiny --device cpu --dataset.type custom --dataset.dataset_root_dir . "
    "--dataset.finetune_stage_components"
)
TAKEN = f"{TRAIN} rows.json,images"
SCORE = "benchmark --predictions captions_of_a.json --coco_annotations"
ASK = "benchmark cobra-tiny --coco_annotations captions.json --image_dir"

# Command line -> texts that the error holds; `{port}` is one in use.
MISTAKES = {
    # Commands and flags
    "trian": ["the command 'trian' is unknown", "Did you mean train?"],
    "train --sed 1": ["did you mean --seed?"],
    "train --rank 4": ["did you mean --lora.rank?"],
    "train --seed": ["--seed has no value: it takes a whole number"],
    "train -seed 1": ["did you mean --seed?"],
    "train \u2014seed 1": ["did you mean --seed?"],
    "train seed=1": ["did you mean --seed?"],
    "generate cobra-tiny --image images/a.jpg --prompt What is this": ["'is' belongs to no flag", "in quotes"],
    "generate cobra-tiny images/a.jpg": ["'images/a.jpg' belongs to no flag", "--flag value"],
    "preprocess --dataset coco-captions": ["did you mean --dataset_id?"],
    "export": ["--checkpoint and --output must be given"],
    "export cobra-tiny": ["--output must be given"],
    "train --config_path nope.yaml": ["--config_path nope.yaml cannot be read (No such file or directory)"],
    "train --config_path images": ["--config_path images cannot be read (Is a directory)"],
    # Values
    "train --lora.rank true": ["--lora.rank takes a whole number, not 'true'"],
    "train --dry_run perhaps": ["--dry_run takes true or false, not 'perhaps'"],
    "train --model cobra-3b": ["choose with --model.type cobra-3b"],
    "train --model.type cobra-3": ["Did you mean cobra-3b?"],
    "train --dataset.type costum": ["Did you mean custom?"],
    "train --nproc two": ["--nproc is 'two'", "a number of processes"],
    f"{TRAIN} rows.json": ["takes 2 items, separated by commas, not 1"],
    f"{TAKEN} --stage fientune": ["Did you mean finetune?"],
    f"{TAKEN} --device gpu": ["'gpu' is not a device", "cuda, cuda:N, mps, cpu"],
    f"{TAKEN} --trackers wandbb": ["Did you mean wandb?"],
    f"{TAKEN} --model.finetune_max_steps 0": ["--model.finetune_max_steps is 0 and must be at least 1"],
    f"{TAKEN} --model.finetune_learning_rate fast": ["takes a number, not 'fast'"],
    f"{TAKEN} --run_id a/b": ["--run_id 'a/b'", "without slashes"],
    "generate cobra-tiny --temperature -1": ["temperature is -1.0 and must be positive"],
    "generate cobra-tiny --top_p 2": ["top_p is 2.0 and must be above 0 and at most 1"],
    "generate cobra-tiny --search vot": ["Did you mean vote?"],
    "benchmark": ["give --checkpoint", "--predictions", "or --lmms_eval_logs"],
    "benchmark --task caption": ["Did you mean captions?"],
    "benchmark cobra-tiny --max_images 0": ["--max_images is 0 and must be at least 1"],
    "preprocess coco-caption": ["Did you mean coco-captions?"],
    "fetch none": ["there is nothing to fetch", "--datasets"],
    "fetch none --datasets coco": ["'coco' is unknown", "coco-captions"],
    "prepare --verify ful": ["--verify is ful and must be one of full, fast, none"],
    "demo --rows 0": ["--rows is 0 and must be at least 1"],
    "completion korn": ["'korn' is unknown", "bash"],
    # Files and folders
    f"{TRAIN} nope.json,images": ["annotation file of custom", "does not exist: nope.json"],
    f"{TRAIN} images,images": ["images is a folder, and training reads a file of rows", "cobra-vlm check images"],
    f"{TRAIN} rows.json,nope": ["image folder of custom", "does not exist: nope"],
    f"{TRAIN} rows.json,rows.json": ["image folder of custom", "is no folder: rows.json"],
    f"{TRAIN} empty.json,images": ["empty.json", "is empty", '"conversations"'],
    f"{TRAIN} torn.json,images": ["torn.json", "ends in the middle of a value"],
    f"{TRAIN} unanswered.json,images": ["every answer in unanswered.json is empty"],
    f"{TRAIN} imageless.json,images": ["gone.jpg", "--dataset.on_bad_image skip"],
    f"{TAKEN} --pretrained_checkpoint nope": ["'nope' is neither a run directory, a checkpoint file nor a known model"],
    f"{TAKEN} --pretrained_checkpoint notes.txt": ["notes.txt cannot be read as a checkpoint", "file"],
    f"{TAKEN} --pretrained_checkpoint images": ["images/config.json", "that cobra-vlm train has written"],
    f"{TAKEN} --resume nope": ["--resume nope is neither auto, none nor a run directory"],
    f"{TAKEN} --run_root_dir notes.txt": ["notes.txt", "give another folder"],
    f"{TAKEN} --hf_token hf_abcdefghijklmnop": ["looks like a token itself", "put it into a file"],
    f"{TAKEN} --hf_token images": ["the token file images is no file"],
    f"{TAKEN} --hf_token token": ["the token file token is not UTF-8 text"],
    "generate cobra-tyni": ["Did you mean cobra-tiny?"],
    "generate cobra-tiny --image nope.jpg": ["'nope.jpg' cannot be opened as a picture (No such file or directory)"],
    "generate cobra-tiny --image notes.txt": ["'notes.txt' cannot be opened as a picture", "JPEG, PNG"],
    "generate cobra-tiny --image images": ["'images' is not a file"],
    "generate cobra-tiny --image http://127.0.0.1:9/a.jpg": ["Connection refused", "give the path of a file"],
    "serve cobra-tiny --port {port}": ["port {port} ([Errno 98] Address already in use)", "0 is any that is free"],
    "serve cobra-tiny --port 99999": ["port must be 0-65535"],
    "export cobra-tiny --output images": ["--output images exists already"],
    "export cobra-tiny --output new --format zip": ["--format 'zip' is unknown", "pt, safetensors"],
    "benchmark cobra-tiny": ["cobra-vlm preprocess --dataset_id coco-captions", "--coco_annotations"],
    "benchmark cobra-tiny --task llava-cot": ["held-out rows do not exist", "prepare", "--llava_cot_annotations"],
    "benchmark cobra-tiny --prompt @nope.txt": ["nope.txt cannot be read (No such file or directory)"],
    "benchmark cobra-tiny --coco_annotations captions.json": ["--image_dir is missing"],
    f"{ASK} nope": ["image folder does not exist: nope"],
    f"{ASK} notes.txt": ["image folder is a file: notes.txt"],
    f"{ASK} nowhere": ["the folder nowhere lacks 1 image: a.jpg", "--image_dir"],
    f"{SCORE} nope.json": ["annotation file does not exist: nope.json"],
    f"{SCORE} images": ["images holds neither captions.json", "give an annotation file"],
    f"{SCORE} notes.txt": ["notes.txt", "is not valid JSON"],
    f"{SCORE} captions.json --output_dir notes.txt": ["notes.txt cannot be used", "give another name"],
    "benchmark --predictions nope.json --coco_annotations captions.json": [
        "predictions file does not exist: nope.json"
    ],
    "benchmark --predictions images --coco_annotations captions.json": ["is a folder, and a file was expected: images"],
    "benchmark --predictions empty.json --coco_annotations captions.json": [
        "no caption for 1 image",
        "--allow_missing",
    ],
    "prepare --dataset_root nope --download false": ["--dataset_root nope does not exist"],
    # No network
    "generate cobra+3b --prompt hi": ["the hub cannot be reached", "cobra-vlm fetch"],
    "fetch cobra+3b": ["the hub cannot be reached"],
    "preprocess llava-laion-cc-sbu-558k": ["where there is a network", "llava-laion-cc-sbu-558k here"],
    "prepare": ["train.jsonl", "cobra-vlm fetch none --datasets llava-cot-100k"],
    "benchmark cobra-tiny --coco_annotations owner/set": ["hf download owner/set --repo-type dataset"],
    "export cobra-tiny --output new --push_to me/x": ["the folder is whole", "hf upload me/x"],
}


def _row(image="a.jpg", answer="A red picture."):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
    return {"id": "0", "image": image, "conversations": turns}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with good and bad files, and a hub that does not answer."""
    from huggingface_hub import constants

    for name in ("images", "nowhere"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "images" / "a.jpg")
    files = {"rows": [_row()], "empty": [], "unanswered": [_row(answer="")], "imageless": [_row("gone.jpg")]}
    files |= {"captions": {"a.jpg": ["a red picture"]}, "captions_of_a": [{"image_id": "a.jpg", "caption": "red"}]}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "torn.json").write_text('[{"id": "1", ')
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "token").write_bytes(b"\xff\xfeh\x00")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(fetch, "_REACH_SECONDS", -1.0)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


def outcome(capfd, monkeypatch, line):
    """Return the exit code of `cobra-vlm LINE`, run in this process, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cobra-vlm", *shlex.split(line)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capfd.readouterr()


@pytest.mark.fault("E7")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_paragraph_with_the_way_out(folder, capfd, monkeypatch, line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = outcome(capfd, monkeypatch, line.replace("{port}", port))
    message = err.splitlines()[-1]
    assert code == 2, err
    assert message.startswith("error: ") and message == err[err.index("error: ") :].rstrip("\n"), err
    for text in MISTAKES[line]:
        assert text.replace("{port}", port) in message
    assert "Traceback" not in err and "scripts/" not in err and "python " not in err
    # Retries of libraries would be further lines.
    assert err.count("\n") <= 3 and len(message) <= 420


RIGHT = {
    "--version": "cobra-vlm 0.",
    "help train": "usage: cobra-vlm train ",
    "train --help all": "--lora.rank",
    f"{TRAIN} '[rows.json images]' --dry_run": "Plan of cobra-tiny",
    f"{TRAIN} rows.json images --dry-run": "Plan of cobra-tiny",
}


@pytest.mark.fault("E7")
@pytest.mark.parametrize("line", RIGHT)
def test_what_looks_right_is_right(folder, capfd, monkeypatch, line):
    code, out, err = outcome(capfd, monkeypatch, line)
    assert code == 0, err
    assert RIGHT[line] in out


@pytest.mark.fault("E8")
def test_the_name_of_another_run_is_taken(folder, capfd, monkeypatch):
    run = f"{TAKEN} --pretrained_checkpoint cobra-tiny --model.finetune_max_steps"
    assert outcome(capfd, monkeypatch, f"{run} 1 --run_id mine")[0] == 0
    code, _, err = outcome(capfd, monkeypatch, f"{run} 1 --run_id mine --seed 8")
    assert code == 2 and err.startswith("error: ") and "--run_id" in err and err.count("\n") == 1


@pytest.mark.fault("E12")
@pytest.mark.parametrize("name", ["training.pretrain", "evaluation.benchmark", "export.export", "demo.run"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_module_that_is_no_program_names_the_one_that_is(name):
    with pytest.raises(SystemExit, match="this module is no program; run: "):
        runpy.run_module(f"cobra.{name}", run_name="__main__")


@pytest.mark.fault("E12")
def test_a_reader_that_leaves_is_no_error():
    command = f"{shlex.quote(sys.executable)} -u -m cobra --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")
