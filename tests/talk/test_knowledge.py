"""Sentences on what a model can be asked about."""

import json
from types import SimpleNamespace

import pytest

import cobra
from cobra.models.registry import MODELS
from cobra.talk.knowledge import knows_shapes, model_knowledge

pytestmark = pytest.mark.fault("E13")


def model(folder=None, tower="clip-vit-l-336px", is_stock=False):
    """Stand-in for a model that was loaded from a run."""
    return SimpleNamespace(
        model_id="cobra+3b",
        is_stock=is_stock,
        checkpoint_path=folder and folder / "checkpoints" / "latest-checkpoint.pt",
        vision_backbone=SimpleNamespace(identifier=tower),
    )


def test_the_packaged_model_knows_no_photographs():
    vlm = cobra.load("cobra-tiny", device="cpu")
    assert knows_shapes(vlm) and model_knowledge(vlm) == (
        "cobra-tiny knows rendered shapes, not photographs; it describes them and says where they are, whatever is "
        "asked."
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"dataset": {"dataset_id": "llava-cot-100k"}, "stage": "finetune"},
            "cobra+3b, trained on llava-cot-100k (stage finetune).",
        ),
        (
            {"dataset": {"dataset_id": "custom"}, "stage": "align"},
            "cobra+3b, trained on its owner's rows (stage align).",
        ),
        *(({"dataset": dataset, "stage": "finetune"}, "The model is cobra+3b.") for dataset in (None, [], {}, "a")),
        ({"dataset": {"dataset_id": "\u202ea" * 90}, "stage": []}, "The model is cobra+3b."),
        ([], "The model is cobra+3b."),
    ],
)
def test_a_run_is_known_by_its_record_and_else_by_its_id(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_knowledge(model(tmp_path)) == expected


def test_a_model_without_a_record_is_known_by_its_id(tmp_path):
    assert model_knowledge(model()) == model_knowledge(model(tmp_path)) == "The model is cobra+3b."


def test_a_strangers_record_does_not_steer_the_terminal(tmp_path):
    config = {"dataset": {"dataset_id": "\x1b[2J" + "a" * 5000}, "stage": "\u202e"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sentence = model_knowledge(model(tmp_path))
    assert "\x1b" not in sentence and "\u202e" not in sentence and len(sentence) < 300


def test_a_run_that_began_as_the_packaged_model_says_so(tmp_path):
    tower = MODELS["cobra-tiny"].config.vision_backbone_id
    config = {"dataset": {"dataset_id": "llava-cot-100k"}, "stage": "finetune"}
    origin = "from cobra-tiny, which knows rendered shapes, not photographs."
    assert model_knowledge(model(tmp_path, tower)) == f"Trained on rows without a record {origin}"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_knowledge(model(tmp_path, tower)) == f"Trained on llava-cot-100k (stage finetune) {origin}"
