"""Prepare as a whole: its flags, one run at a time, what kills leave behind, and its exit codes."""

import json
import os

import pytest
from small_publication import Publication, annotation, turns

from cobra.commands.prepare import main
from cobra.conf.datasets import LLaVa_CoT_100k_Config
from cobra.preprocessing.download import download_extract
from cobra.preprocessing.llava_cot import PrepareConfig, prepare
from cobra.util import cli
from cobra.util.errors import UserError
from cobra.util.lock import hold


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("verify", "twice", "one of full, fast, none"),
        ("max_samples", 0, "at least 1, or null"),
        ("holdout", -1, "at least 0, or null"),
        ("max_rejected", 1.5, "a share, from 0 to 1"),
        ("llm_max_length", 0, "at least 1"),
        ("num_workers", 0, "at least 1, or null"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, flag, value, expected):
    config = PrepareConfig(tmp_path / "data")
    setattr(config, flag, value)
    with pytest.raises(UserError, match=f"--{flag} is {value} and must be {expected}"):
        prepare(config)
    assert not (tmp_path / "data").exists()


def test_unknown_language_model_is_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="'mamba-9b' is unknown; the known ones are"):
        prepare(PrepareConfig(tmp_path / "data", llm_backbone_id="mamba-9b"))
    assert not (tmp_path / "data").exists()


def test_sources_come_as_they_are_typed():
    config = cli.parse(PrepareConfig, ["--sources", "chartqa,sqa", "--keep_parts", "false", "--holdout", "null"])
    assert config.sources == ("chartqa", "sqa") and config.keep_parts is False and config.holdout is None
    assert cli.parse(PrepareConfig, []).sources == ()


@pytest.mark.fault("A7")
def test_one_run_at_a_time(tmp_path):
    folder = Publication().write(tmp_path)
    with hold(folder / ".prepare", "a test works"):
        with pytest.raises(UserError, match=rf"{folder}/.prepare already: process {os.getpid()}"):
            prepare(PrepareConfig(tmp_path, download=False))
        with pytest.raises(UserError, match="another run is at work"):
            download_extract("llava-cot-100k", tmp_path)
    assert not (folder / "llava_cot_100k.json").exists()


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    folder = Publication().write(tmp_path)
    (folder / ".llava_cot_100k.json.abc.tmp").write_text("[")
    prepare(PrepareConfig(tmp_path, download=False))
    assert not list(folder.rglob("*.tmp"))


def test_files_are_those_that_training_reads(tmp_path):
    made = Publication(200)
    made.write(tmp_path)
    prepare(PrepareConfig(tmp_path, download=False, llm_backbone_id="mamba-0.5m-zephyr"))
    config = LLaVa_CoT_100k_Config()
    for components, rows in ((config.finetune_stage_components, 198), (config.holdout_components, 2)):
        file, images = (tmp_path / component for component in components)
        read = json.loads(file.read_text())
        assert len(read) == rows and all((images / row["image"]).is_file() for row in read)


@pytest.mark.parametrize(("max_rejected", "code"), [(0.3, 0), (0.1, 1)])
def test_too_many_rejected_rows_are_exit_code_1_and_nothing_is_lost(tmp_path, capsys, max_rejected, code):
    made = Publication(8)
    for number in range(2):
        made.add({"id": f"x{number}", "image": "sqa/none.png", "conversations": turns("Q?", "A")})
    folder = made.write(tmp_path)
    assert main(PrepareConfig(tmp_path, download=False, max_rejected=max_rejected)) == code
    assert len(annotation(folder)) == 8
    said = capsys.readouterr().out
    assert ("20.0% of the rows were rejected, more than --max_rejected 0.1 allows" in said) == bool(code)


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_inputs_give_equal_files(tmp_path, workers):
    made = Publication(60)
    outputs = []
    for root in (tmp_path / "one", tmp_path / "other"):
        folder = made.write(root)
        for _ in range(2):
            prepare(PrepareConfig(root, download=False, num_workers=workers if root.name == "other" else 1))
        outputs.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert outputs[0] == outputs[1]
    assert {"report.json", "report.html", "coco_ids.json", "rejected.jsonl"} < outputs[0].keys()
