"""Rows in the forms that people bring train to the same loss as their twins in LLaVA's format, to the bit."""

import json

import pytest
from brought_forms import JSON_FORMS, PACKED_FORMS, write_form
from PIL import Image
from scratch import scratch_run

from cobra.training.pretrain import PretrainConfig, pretrain
from cobra.util.cli import parse


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Rows with an image, of several turns, and of text only; and the losses of three steps on them."""
    folder = tmp_path_factory.mktemp("twins")
    (folder / "images" / "sqa").mkdir(parents=True)
    rows = []
    for index in range(9):
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?" if index != 4 else "What?"},
            {"from": "gpt", "value": "A shape. " * (1 + index)},
        ]
        if index % 3 == 0:
            turns += [{"from": "human", "value": "And its colour?"}, {"from": "gpt", "value": f"Colour {index}."}]
        row = {"id": f"{index:05d}", "conversations": turns, "note": f"kept {index}"}
        if index != 4:
            row["image"] = f"sqa/{index}.png"
            Image.new("RGB", (48, 48), (25 * index, 90, 200 - 20 * index)).save(folder / "images" / row["image"])
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder, rows, losses(folder, "rows.json", "images", "twin")


def losses(folder, file, images, run_id, *more):
    sizes = ("--model.finetune_max_steps", "3", "--model.finetune_global_batch_size", "4")
    components = ("--dataset.finetune_stage_components", f"[{file},{images}]")
    flags = [*sizes, "--model.finetune_per_device_batch_size", "2", *components, "--page", "false", *more]
    run_dir = pretrain(parse(PretrainConfig, scratch_run(folder, run_id, *flags)))
    lines = (run_dir / f"{run_dir.name}.jsonl").read_text().splitlines()
    return [json.loads(line)["Finetune/Loss (Raw)"] for line in lines]


def same_losses(twins, form, *more):
    folder, rows, expected = twins
    path = write_form(form, folder, rows, folder / "images")
    # The images are inside: their folder is not looked into.
    images = "images" if form in JSON_FORMS else "."
    assert losses(folder, path.name, images, path.name, *more) == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize("form", ["messages", "parquet folder", "save_to_disk"])
def test_a_form_trains_to_the_loss_of_its_twin(twins, form):
    same_losses(twins, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*(JSON_FORMS.keys() - {"messages"}), "parquet"])
def test_each_other_form_trains_to_the_loss_of_its_twin(twins, form):
    same_losses(twins, form)


@pytest.mark.slow
def test_data_workers_open_packed_images_for_themselves(tmp_path, twins):
    folder, rows, expected = twins
    path = PACKED_FORMS["parquet"](tmp_path, rows, folder / "images")
    more = ("--num_workers", "2", "--dataset.dataset_root_dir", str(tmp_path))
    assert losses(folder, path.name, ".", "workers", *more) == expected
