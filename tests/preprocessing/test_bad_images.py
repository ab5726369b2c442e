"""Rows whose image is missing or unreadable: an error that names them, or a place without a label."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from example_rows import PAIR, first_pixel, write_rows
from PIL import Image
from torch.utils.data import DataLoader

import cobra.models.tiny
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import PictureFolder
from cobra.evaluation.responses.prefetch import hash_image
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import ZephyrChatPromptBuilder
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.datasets.rows import Defect
from cobra.preprocessing.llava_cot.rows.image_checks import ImageChecker
from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.errors import UserError

GOOD = {"id": "good", "conversations": PAIR}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(cobra.models.tiny.__file__).parent, 400)


def finetune(folder, tokenizer, rows, transform=first_pixel, **options):
    path = write_rows(folder, rows)
    return FinetuneDataset(path, folder / "images", transform, tokenizer, ZephyrChatPromptBuilder, **options)


BAD_IMAGES = ["absent", "folder", "text", "empty", "cut", "link to itself", "unknown pixel format"]


def _damage(path, kind):
    whole = path.read_bytes()
    if kind == "absent":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "link to itself":
        path.unlink()
        path.symlink_to(path)
    elif kind == "unknown pixel format":
        Image.new("RGB", (4, 4)).save(path, "DDS")
        data = bytearray(path.read_bytes())
        data[80:84] = (128).to_bytes(4, "little")
        path.write_bytes(data)
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2]}[kind])


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_unreadable_image_is_named_with_its_row(folder, tokenizer, kind):
    dataset = finetune(folder, tokenizer, [{"id": 7, "image": "a.png", "conversations": PAIR}])
    _damage(folder / "images" / "a.png", kind)
    with pytest.raises(UserError, match=r"row 0 \(id 7\)") as error:
        dataset[0]
    assert "a.png" in str(error.value)


def towers(image):
    """Pixels of two towers of different sizes; a black picture's are not zero."""
    return {"dino": torch.ones(3, 4, 4), "siglip": torch.full((3, 6, 6), float(image.width))}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_row_with_a_bad_image_can_stay_without_a_label(folder, tokenizer, kind, capsys):
    Image.new("RGB", (4, 4)).save(folder / "images" / "b.png")
    rows = [{"id": name, "image": f"{name}.png", "conversations": PAIR} for name in ("a", "b")]
    dataset = finetune(folder, tokenizer, rows, towers, on_bad_image="skip")
    whole = dataset[0]
    _damage(folder / "images" / "a.png", kind)
    example, good = dataset[0], dataset[1]
    assert torch.equal(example["input_ids"], whole["input_ids"])
    assert example["labels"].tolist() == [IGNORE_INDEX] * len(whole["labels"])
    assert {name: (pixels.shape, pixels.abs().max().item()) for name, pixels in example["pixel_values"].items()} == {
        "dino": ((3, 4, 4), 0),
        "siglip": ((3, 6, 6), 0),
    }
    assert example["skipped_row"] == 0 and "skipped_row" not in good
    assert torch.equal(good["labels"], whole["labels"])
    assert len(dataset) == 2 and dataset.get_modality_lengths() == [(True, 4), (True, 4)]
    dataset[0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a row is skipped: row 0 (id 'a') of") and "a.png" in line


def test_blank_pixels_are_a_tensor_where_there_is_one_tower(folder, tokenizer):
    turns = [PAIR[0], {"from": "gpt", "value": "a cat"}]
    rows = [{"id": 1, "image": "absent.png", "conversations": turns}]
    dataset = AlignDataset(write_rows(folder, rows), folder / "images", first_pixel, tokenizer, on_bad_image="skip")
    assert dataset[0]["pixel_values"].tolist() == [0, 0, 0]
    assert set(dataset[0]["labels"].tolist()) == {IGNORE_INDEX}


def test_what_the_transform_refuses_is_skipped_and_its_faults_are_not(folder, tokenizer):
    def strict(image):
        if image.width == 4:
            raise UserError("too thin")
        return first_pixel(image)

    def faulty(image):
        raise ValueError("a bug in the transform")

    rows = [{"image": "a.png", "conversations": PAIR}]
    skipping = finetune(folder, tokenizer, rows, strict, on_bad_image="skip")
    assert skipping[0]["pixel_values"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="a bug in the transform"):
        finetune(folder, tokenizer, rows, faulty, on_bad_image="skip")[0]


def test_skipped_rows_are_carried_out_of_workers(folder, tokenizer, capfd):
    rows = [
        {"id": index, "image": "absent.png" if index in (1, 4, 5) else "a.png", "conversations": PAIR}
        for index in range(6)
    ]
    dataset = finetune(folder, tokenizer, rows, on_bad_image="skip")
    collator = PaddedCollatorForLanguageModeling(400, 1, (3, 4, 4))
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=collator, num_workers=2))
    assert [batch.get("skipped_rows", torch.empty(0)).tolist() for batch in batches] == [[1], [], [4, 5]]
    assert [(batch["labels"] != IGNORE_INDEX).any(1).tolist() for batch in batches] == [
        [True, False],
        [True, True],
        [False, False],
    ]
    assert batches[0]["multimodal_indices"].tolist() == [0, 1]
    assert capfd.readouterr().err.count("warning: a row is skipped") == 3


@pytest.mark.parametrize(
    ("option", "known"),
    [({"on_bad_image": "ignore"}, "on_bad_image 'ignore'.*raise, skip"), ({"truncation": "left"}, "right, drop")],
)
def test_unknown_options_name_the_known_ones(folder, tokenizer, option, known):
    with pytest.raises(UserError, match=known):
        finetune(folder, tokenizer, [GOOD], **option)


def test_an_image_too_large_to_be_honest_is_refused(folder, tokenizer, monkeypatch):
    dataset = finetune(folder, tokenizer, [{"id": 7, "image": "a.png", "conversations": PAIR}])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(UserError, match="a.png"):
        dataset[0]


def test_a_fault_of_the_transform_is_not_blamed_on_the_image(folder, tokenizer):
    def faulty(image):
        raise ValueError("a bug in the transform")

    with pytest.raises(ValueError, match="a bug in the transform") as error:
        finetune(folder, tokenizer, [{"image": "a.png", "conversations": PAIR}], transform=faulty)[0]
    assert not isinstance(error.value, UserError)


def test_an_image_that_the_transform_refuses_is_named_with_its_row(folder, tokenizer):
    def strict(image):
        raise UserError("too thin")

    rows = [{"id": 7, "image": "a.png", "conversations": PAIR}]
    with pytest.raises(UserError, match=r"row 0 \(id 7\) of .*a.png: too thin"):
        finetune(folder, tokenizer, rows, transform=strict)[0]


ZOO = Path(__file__).parents[1] / "faults" / "zoo" / "images"
ODD = [
    "pipe.png",
    "folder.png",
    "loop.png",
    "a.png/b.png",
    "x" * 256,
    "/".join(["x" * 250] * 20),
    "large.jpg",
    "\ud800",
]


@pytest.fixture
def odd_images(folder):
    """The zoo, and what else can lie or be named where a picture should be."""
    images = folder / "images"
    shutil.copytree(ZOO, images, dirs_exist_ok=True)
    os.mkfifo(images / "pipe.png")
    (images / "folder.png").mkdir()
    (images / "loop.png").symlink_to("loop.png")
    with (images / "large.jpg").open("wb") as file:
        file.truncate(2**40)
    return folder


REFUSED = {"cut20.jpg", "cuthalf.jpg", "empty.jpg", "html.jpg", "progcut.jpg"}


@pytest.mark.fault("C1")
@pytest.mark.fault("F17")
def test_preparation_training_and_benchmark_agree_on_every_file(odd_images, tokenizer):
    names = sorted(path.name for path in ZOO.iterdir()) + ODD
    rows = [{"id": number, "image": name, "conversations": PAIR} for number, name in enumerate(names)]
    dataset = finetune(odd_images, tokenizer, rows, on_bad_image="skip")
    trained = {name for number, name in enumerate(names) if "skipped_row" not in dataset[number]}
    checker = ImageChecker(odd_images / "images", odd_images / "record.jsonl")
    checker.check(names)
    prepared = {name for name in names if checker.is_usable(name)}
    pictures = PictureFolder(odd_images / "images")
    shown = set()
    for name in names:
        image = CaptionedImage(name, name, ("a word",))
        try:
            pictures.load(image)
            shown.add(name)
            assert hash_image(image, pictures)
        except UserError as error:
            assert pictures.has(image) == (name in {*REFUSED, "large.jpg"}), error
            # A file of 2^40 bytes would be hashed for an hour.
            assert bool(hash_image(image, pictures)) == (name in REFUSED)
    assert trained == prepared == shown == set(names) - REFUSED - set(ODD)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("mode", ["full", "fast", "none"])
def test_preparation_tells_a_missing_image_from_one_that_cannot_be_reached(odd_images, mode):
    checker = ImageChecker(odd_images / "images", odd_images / "record.jsonl", mode)
    checker.check([*ODD, "absent.png"])
    assert not any(map(checker.is_usable, [*ODD, "absent.png"]))
    assert checker.counts() == {Defect.MISSING_IMAGE: 2, Defect.UNREADABLE_IMAGE: len(ODD) - 1}


@pytest.mark.fault("C1")
def test_a_path_of_any_length_is_named_in_a_line(odd_images, tokenizer):
    dataset = finetune(odd_images, tokenizer, [{"id": 7, "image": "x/" * 5000 + "a.png", "conversations": PAIR}])
    with pytest.raises(UserError, match="row 0 .*cannot be read.*File name too long") as error:
        dataset[0]
    assert len(str(error.value)) < 1000
