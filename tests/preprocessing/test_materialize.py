"""The factory of datasets: the right kind of rows a stage, and errors that say what to type."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import draccus
import pytest
import torch
from PIL import Image

import cobra.models.tiny
from cobra.conf import DatasetConfig, ModelConfig
from cobra.conf.datasets import Publication
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import ZephyrChatPromptBuilder
from cobra.preprocessing import convert_to_jpg, download_extract, get_dataset_and_collator
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.materialize import find_components
from cobra.training.planning.row_lengths import read_facts
from cobra.util.errors import UserError

ROWS = [
    {
        "id": 1,
        "image": "a.png",
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}],
    }
]


def materialize(dataset_cfg, stage="finetune", **options):
    tokenizer = SimpleNamespace(model_max_length=64, pad_token_id=1, num_special_tokens_to_add=lambda: 0)
    return get_dataset_and_collator(
        stage, dataset_cfg, lambda image: image, tokenizer, ZephyrChatPromptBuilder, (3, 4, 4), **options
    )


def config(dataset_id, root, **options):
    return DatasetConfig.get_choice_class(dataset_id)(dataset_root_dir=root, **options)


def make(root: Path, components: tuple[Path, Path]):
    annotation, images = (root / component for component in components)
    images.mkdir(parents=True, exist_ok=True)
    annotation.parent.mkdir(parents=True, exist_ok=True)
    annotation.write_text(json.dumps(ROWS))
    Image.new("RGB", (4, 4)).save(images / "a.png")


@pytest.mark.parametrize("dataset_id", DatasetConfig.get_known_choices())
@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
def test_every_dataset_and_stage_opens_its_own_files(tmp_path, dataset_id, stage):
    cfg = config(dataset_id, tmp_path)
    components = cfg.align_stage_components if stage == "align" else cfg.finetune_stage_components
    make(tmp_path, components)
    dataset, collator = materialize(cfg, stage)
    assert type(dataset) is (AlignDataset if stage == "align" else FinetuneDataset)
    assert dataset.examples == ROWS
    assert (collator.model_max_length, collator.pad_token_id) == (64, 1)
    assert collator.default_image_resolution == (3, 4, 4)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_the_options_of_rows_reach_the_dataset(tmp_path, stage):
    cfg = config("custom", tmp_path, on_bad_image="skip", truncation="drop")
    make(tmp_path, cfg.finetune_stage_components)
    (tmp_path / "images" / "a.png").unlink()
    tokenizer = load_tokenizer(Path(cobra.models.tiny.__file__).parent, 15)
    arguments = (stage, cfg, lambda image: torch.ones(3, 4, 4), tokenizer, ZephyrChatPromptBuilder, (3, 4, 4))
    if stage == "align":
        assert get_dataset_and_collator(*arguments)[0][0]["skipped_row"] == 0
    else:
        with pytest.raises(UserError, match="every row of .*15 tokens"):
            get_dataset_and_collator(*arguments)


@pytest.mark.parametrize("option", [{"on_bad_image": "ignore"}, {"truncation": "left"}])
def test_unknown_options_of_rows_are_refused(tmp_path, option):
    cfg = config("custom", tmp_path, **option)
    make(tmp_path, cfg.finetune_stage_components)
    with pytest.raises(UserError, match=f"--dataset.{next(iter(option))} .*the known ones are"):
        materialize(cfg)


def test_an_unknown_stage_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"'polish'.*align.*finetune.*full-finetune"):
        materialize(config("llava-v15", tmp_path), "polish")


def test_padding_on_the_left_is_refused(tmp_path):
    cfg = config("custom", tmp_path)
    make(tmp_path, cfg.finetune_stage_components)
    with pytest.raises(UserError, match="'left'"):
        materialize(cfg, padding_side="left")


REMEDIES = [
    ("llava-cot-100k", "finetune", "python fine_tune/prepare_llava_cot.py --dataset_root {root}"),
    ("llava-v15", "finetune", "python scripts/preprocess.py --dataset_id llava-v1.5-instruct --root_dir {root}"),
    ("llava-v15", "align", "python scripts/preprocess.py --dataset_id llava-laion-cc-sbu-558k --root_dir {root}"),
    ("llava-cot-100k", "align", "python scripts/preprocess.py --dataset_id llava-laion-cc-sbu-558k --root_dir {root}"),
    ("custom", "finetune", "--dataset.finetune_stage_components"),
    ("custom", "align", "--dataset.align_stage_components"),
]


@pytest.mark.parametrize(("dataset_id", "stage", "remedy"), REMEDIES)
def test_missing_files_come_with_the_command_that_makes_them(tmp_path, dataset_id, stage, remedy):
    cfg = config(dataset_id, tmp_path)
    components = cfg.align_stage_components if stage == "align" else cfg.finetune_stage_components
    with pytest.raises(UserError) as error:
        materialize(cfg, stage)
    assert remedy.format(root=tmp_path) in str(error.value)
    assert f"annotation file of {dataset_id}" in str(error.value)
    assert str(tmp_path / components[0]) in str(error.value)


def test_a_missing_image_folder_is_told_apart_from_a_missing_annotation_file(tmp_path):
    cfg = config("custom", tmp_path)
    make(tmp_path, (cfg.finetune_stage_components[0], Path("elsewhere")))
    with pytest.raises(UserError, match="image folder of custom.*images"):
        materialize(cfg)


def test_the_command_can_be_pasted_when_the_folder_has_a_blank(tmp_path):
    with pytest.raises(UserError) as error:
        materialize(config("llava-cot-100k", tmp_path / "my data"))
    assert f"--dataset_root '{tmp_path / 'my data'}'" in str(error.value)


def test_the_download_helpers_are_exported():
    assert callable(download_extract)
    assert callable(convert_to_jpg)


def test_a_dataset_is_registered_by_its_class_alone(tmp_path, monkeypatch):
    choices = dict(DatasetConfig.get_known_choices())
    monkeypatch.setattr(DatasetConfig, "_choice_registry", choices)

    @DatasetConfig.register_subclass("mine")
    @dataclass
    class Mine(DatasetConfig):
        dataset_id: str = "mine"
        align_stage_components: tuple[Path, Path] = (Path("chat.json"), Path("images"))
        finetune_stage_components: tuple[Path, Path] = (Path("mine.json"), Path("images"))
        published_finetune = Publication(12, "Make it: python mine.py --to {root}")

    config = draccus.decode(DatasetConfig, {"type": "mine", "dataset_root_dir": str(tmp_path)})
    assert isinstance(config, Mine) and "published_finetune" not in draccus.encode(config)
    with pytest.raises(UserError, match=f"mine.json. Make it: python mine.py --to {tmp_path}"):
        find_components("finetune", config)
    facts = read_facts("finetune", config, ModelConfig.get_choice_class("cobra-tiny")(), 9)
    assert len(facts.tokens) == 12 and "python mine.py" in facts.problem
