"""Models that are there already: one protocol for all, several of a name as its seeds, and one page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cobra.evaluation.config import CONCLUSIONS, BenchmarkConfig
from cobra.export.config import ExportConfig
from cobra.export.export import export
from cobra.study.exam import CAPTIONS, Score
from cobra.study.models import arms_without_seed, check_models, score_models
from cobra.study.report import PAGE, RESULT
from cobra.util.errors import UserError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": ("full=a", "b")}, "--model b: NAME=PLACE was expected"),
        ({"model": ("full=a", "full=b")}, "two names or more"),
        ({"model": ("full=a", "other=a")}, "names a more than once"),
        ({"model": ("full=a", "other=b"), "checkpoint": "c"}, "no use for --checkpoint"),
        ({"model": ("full=a", "other=b"), "search": "vote"}, "no use for --search"),
        ({"task": "poems"}, "--task 'poems' is unknown"),
        ({"batch_size": 0}, "--batch_size is 0 and must be at least 1"),
        ({"max_new_tokens": 0}, "--max_new_tokens is 0 and must be at least 1"),
        ({"max_images": 0}, "--max_images is 0 and must be at least 1"),
        ({"dtype": "fp7"}, "the dtype 'fp7' is unknown"),
        ({"device": "abacus"}, "'abacus' is not a device"),
        ({"quantize": "int3"}, "--quantize 'int3'"),
        ({"llava_cot_annotations": Path("h.json")}, "give --task llava-cot too"),
        ({"task": CONCLUSIONS, "coco_annotations": "c.json"}, "has no use for --coco_annotations"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        check_models(BenchmarkConfig(**{"model": ("full=a", "other=b")} | values))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"mine": 1, "yours": 1}, {"mine", "yours"}),
        ({"start": 1, "full": 1}, {"start", "full"}),
        ({"start": 1, "full": 2}, {"start"}),
        ({"start": 1, "full": 1, "conclusion": 3}, {"start"}),
        ({"full": 1, "conclusion": 3}, set()),
        ({"full": 2, "conclusion": 3}, set()),
    ],
)
def test_one_model_of_an_arm_has_a_seed_where_other_arms_have_several(counts, expected):
    scores = {name: [Score({CAPTIONS: [1.0]})] * count for name, count in counts.items()}
    assert arms_without_seed(scores) == expected


def test_models_answer_under_one_protocol_and_equal_ones_show_no_effect(scene_rows, tmp_path, capsys):
    """The packaged model against copies of it, one with another number in it, on questions and on captions."""
    copies = [export(ExportConfig("cobra-tiny", tmp_path / name, "safetensors")) for name in ("one", "two")]
    tensors = load_file(copies[1] / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1e-6
    save_file(tensors, copies[1] / "model.safetensors")
    models = ("start=cobra-tiny", f"full={copies[0]}", f"full={copies[1]}")
    config = BenchmarkConfig(
        model=models,
        task=CONCLUSIONS,
        llava_cot_annotations=scene_rows / "rows.json",
        image_dir=scene_rows / "images",
        output_dir=tmp_path / "out",
        max_new_tokens=4,
        batch_size=21,
        max_images=14,
        device="cpu",
    )
    score_models(config)
    told = capsys.readouterr().out
    assert "No effect of training on these rows (whole answers) can be claimed: +0.0 points" in told
    result = json.loads((config.output_dir / RESULT).read_text())
    assert [len(result["arms"][arm]) for arm in ("start", "full")] == [1, 2] and len(result["kinds"]) == 14
    assert (config.output_dir / PAGE).read_text().startswith("# Models compared")
    again = replace(config, model=(*models[:2], f"full={shutil.copytree(copies[0], tmp_path / 'three')}"))
    with pytest.raises(UserError, match="of full two checkpoints hold the same weights"):
        score_models(again)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"{number:06d}.png": ["A red circle at the top."] for number in range(4)}))
    score_models(
        BenchmarkConfig(
            model=models[:2],
            coco_annotations=str(captions),
            image_dir=scene_rows / "images",
            output_dir=tmp_path / "captions",
            max_new_tokens=24,
            device="cpu",
        )
    )
    result = json.loads((tmp_path / "captions" / RESULT).read_text())
    assert list(result["arms"]["full"][0]["values"]) == [CAPTIONS]
    assert result["comparisons"][0]["is_of_arms"] is False
