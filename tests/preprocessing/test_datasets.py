"""Rows as training examples, and what bad rows, files and images are answered with."""

import json
import os

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from cobra.models.backbones.llm.prompting import MambaPromptBuilder, ZephyrChatPromptBuilder
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset, ReasoningTrace
from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.errors import UserError

EOS = 0
PAIR = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with GPT-NeoX's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", "<|padding|>", *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        model_max_length=400,
        padding_side="right",
    )


def text_of(tokenizer, ids):
    """The text of byte-level ids, which maps every byte to one token."""
    table = {letter: byte for byte, letter in _byte_letters().items()}
    special = {0: b"<|endoftext|>", 1: b"<|padding|>"}
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return b"".join(
        special[int(index)] if int(index) in special else bytes([table[token]])
        for index, token in zip(ids, tokens, strict=True)
    ).decode()


def _byte_letters():
    """GPT-2's printable stand-in of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(moved)}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(images / "a.png")
    return tmp_path


def first_pixel(image):
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.float)


def write_rows(folder, rows):
    path = folder / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def finetune(folder, tokenizer, rows, builder=ZephyrChatPromptBuilder, transform=first_pixel):
    return FinetuneDataset(write_rows(folder, rows), folder / "images", transform, tokenizer, builder)


def align(folder, tokenizer, rows):
    return AlignDataset(write_rows(folder, rows), folder / "images", first_pixel, tokenizer)


def test_answers_with_their_end_are_labelled_and_questions_are_not(folder, tokenizer):
    turns = [*PAIR, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes \u00bd"}]
    example = finetune(folder, tokenizer, [{"id": 1, "image": "a.png", "conversations": turns}])[0]
    assert set(example) == {"pixel_values", "input_ids", "labels"}
    assert example["input_ids"].dtype == example["labels"].dtype == torch.long
    assert text_of(tokenizer, example["input_ids"]) == (
        "<|user|>\nWhat?<|endoftext|>\n<|assistant|>\nA cat.<|endoftext|>"
        "\n<|user|>\nSure?<|endoftext|>\n<|assistant|>\nYes \u00bd<|endoftext|>"
    )
    learned = example["labels"] != IGNORE_INDEX
    assert text_of(tokenizer, example["input_ids"][learned]) == "A cat.<|endoftext|>Yes \u00bd<|endoftext|>"
    assert torch.equal(example["labels"][learned], example["input_ids"][learned])
    assert example["pixel_values"].tolist() == [10, 20, 30]


def test_the_prompt_builder_decides_the_form(folder, tokenizer):
    example = finetune(folder, tokenizer, [{"conversations": PAIR}], MambaPromptBuilder)[0]
    assert text_of(tokenizer, example["input_ids"]) == "In: What?\nOut: A cat.<|endoftext|>"


def test_long_rows_are_cut_on_the_right(folder, tokenizer):
    answer = "x" * tokenizer.model_max_length
    example = finetune(folder, tokenizer, [{"conversations": [PAIR[0], {"from": "gpt", "value": answer}]}])[0]
    assert len(example["input_ids"]) == len(example["labels"]) == tokenizer.model_max_length
    assert example["labels"][-1] == example["input_ids"][-1] != EOS


def test_a_dangling_question_stays_unlabelled(folder, tokenizer):
    rows = [{"conversations": [*PAIR, {"from": "human", "value": "Which?"}]}]
    example = finetune(folder, tokenizer, rows)[0]
    assert text_of(tokenizer, example["input_ids"]).endswith("Which?<|endoftext|>\n<|assistant|>\n")
    assert example["labels"][-1] == IGNORE_INDEX


def test_the_image_key_decides_the_modality(folder, tokenizer):
    dataset = finetune(folder, tokenizer, [{"conversations": PAIR}, {"image": "a.png", "conversations": PAIR}])
    assert dataset[0]["pixel_values"] is None
    assert dataset[1]["pixel_values"] is not None
    assert dataset.get_modality_lengths() == [(False, 4), (True, 4)]
    assert len(dataset) == 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16", "LA"])
def test_every_image_mode_becomes_rgb(folder, tokenizer, mode):
    name = "b.tiff" if mode == "CMYK" else "b.png"
    Image.new(mode, (4, 4)).save(folder / "images" / name)
    rows = [{"image": name, "conversations": PAIR}]
    modes = []
    finetune(folder, tokenizer, rows, transform=lambda image: modes.append(image.mode))[0]
    assert modes == ["RGB"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rows_come_from_lines_and_from_lists(folder, tokenizer, name):
    rows = [{"id": index, "conversations": [PAIR[0], {"from": "gpt", "value": str(index)}]} for index in range(3)]
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) if name == "rows.jsonl" else json.dumps(rows))
    dataset = FinetuneDataset(path, folder / "images", first_pixel, tokenizer, ZephyrChatPromptBuilder)
    assert dataset.examples == rows
    assert [text_of(tokenizer, dataset[index]["input_ids"])[-14:-13] for index in range(3)] == ["0", "1", "2"]


def test_a_bad_image_is_named_with_its_line(folder, tokenizer):
    path = folder / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD | {'image': 'absent.png'})}\n")
    dataset = FinetuneDataset(path, folder / "images", first_pixel, tokenizer, ZephyrChatPromptBuilder)
    with pytest.raises(UserError, match=r"line 3 \(id 'good'\) of .*rows.jsonl names.*absent.png"):
        dataset[1]


def test_fused_transforms_give_a_dict(folder, tokenizer):
    rows = [{"image": "a.png", "conversations": PAIR}]
    dataset = finetune(folder, tokenizer, rows, transform=lambda image: {"dino": first_pixel(image)})
    assert dataset[0]["pixel_values"]["dino"].tolist() == [10, 20, 30]


def test_align_learns_the_whole_caption_and_drops_the_question(folder, tokenizer):
    turns = [PAIR[0], {"from": "gpt", "value": " a {small} cat \n"}]
    dataset = align(folder, tokenizer, [{"image": "a.png", "conversations": turns}])
    example = dataset[0]
    assert text_of(tokenizer, example["input_ids"]) == "a {small} cat<|endoftext|>"
    assert torch.equal(example["labels"], example["input_ids"])
    # One word of the question, three of the caption, and the patches; the placeholder is no word here.
    assert dataset.get_modality_lengths(16) == [(True, 20)]


def test_reasoning_traces_of_a_row(folder, tokenizer):
    turns = [
        PAIR[0],
        {"from": "gpt", "value": "<SUMMARY> s </SUMMARY>\n\n<CONCLUSION> 3 </CONCLUSION>"},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes"},
        {"from": "human", "value": "Why?"},
    ]
    first, second = finetune(folder, tokenizer, [{"conversations": turns}]).extract_reasoning_trace(0)
    assert isinstance(first, ReasoningTrace)
    assert (first.summary, first.conclusion) == ("s", "3")
    assert second.conclusion is None


GOOD = {"id": "good", "conversations": PAIR}
BAD_ROWS = {
    "no conversations": ({"id": "bad"}, "no conversations"),
    "null conversations": ({"id": "bad", "conversations": None}, "no conversations"),
    "empty conversations": ({"id": "bad", "conversations": []}, "no conversations"),
    "not a turn": ({"id": "bad", "conversations": ["hello"]}, "turn 0"),
    "no value": ({"id": "bad", "conversations": [{"from": "human"}]}, "'value'"),
    "number as value": ({"id": "bad", "conversations": [{"from": "human", "value": 3}]}, "'value'"),
    "unknown role": ({"id": "bad", "conversations": [{"from": "system", "value": "x"}]}, "'system'.*'human'"),
    "list as role": ({"id": "bad", "conversations": [{"from": [], "value": "x"}]}, r"\[\].*'human'"),
    "answer first": ({"id": "bad", "conversations": PAIR[::-1]}, "'gpt'.*'human'"),
    "two questions": ({"id": "bad", "conversations": [PAIR[0], PAIR[0]]}, "turn 1.*'human'.*'gpt'"),
    "null image": ({"id": "bad", "image": None, "conversations": PAIR}, "image None"),
    "list of images": ({"id": "bad", "image": ["a.png"], "conversations": PAIR}, "a.png"),
    "empty image": ({"id": "bad", "image": "", "conversations": PAIR}, "image ''"),
    "lone surrogate": ({"id": "bad", "conversations": [{"from": "human", "value": "\ud800"}]}, "turn 0"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_when_the_file_is_read(folder, tokenizer, case):
    row, expected = BAD_ROWS[case]
    with pytest.raises(UserError, match=expected) as error:
        finetune(folder, tokenizer, [GOOD, row])
    assert "row 1 (id 'bad')" in str(error.value)
    assert str(folder / "rows.json") in str(error.value)


def test_a_row_that_is_no_object_is_named(folder, tokenizer):
    with pytest.raises(UserError, match="row 1 .*list"):
        finetune(folder, tokenizer, [GOOD, [1]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[\n{"id": 1,\n}\n]', "line 3"),
        ('{"id": 1}\n{"id": 2}', "line 2"),
        ('{"id": 1}', "list of rows.*dict"),
        ("[]", "empty list"),
        ("", "line 1"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(folder, tokenizer, text, expected):
    with pytest.raises(UserError, match=expected):
        finetune(folder, tokenizer, text)


@pytest.mark.parametrize("turns", [PAIR[:1], PAIR + PAIR])
def test_align_takes_one_question_and_one_caption(folder, tokenizer, turns):
    with pytest.raises(UserError, match=rf"row 1 .*{len(turns)} turns"):
        align(folder, tokenizer, [GOOD | {"image": "a.png"}, {"conversations": turns}])


def test_missing_files_are_named(folder, tokenizer):
    with pytest.raises(UserError, match="absent.json"):
        FinetuneDataset(folder / "absent.json", folder, first_pixel, tokenizer, ZephyrChatPromptBuilder)
    with pytest.raises(UserError, match="nowhere"):
        FinetuneDataset(write_rows(folder, [GOOD]), folder / "nowhere", first_pixel, tokenizer, ZephyrChatPromptBuilder)


@pytest.mark.parametrize("image", ["../outside.png", "sub/../../outside.png", "/etc/hostname", "a\0.png", "\ud800.png"])
def test_an_image_outside_the_folder_or_with_an_impossible_name_is_refused(folder, tokenizer, image):
    Image.new("RGB", (4, 4)).save(folder / "outside.png")
    dataset = finetune(folder, tokenizer, [{"id": "bad", "image": image, "conversations": PAIR}])
    with pytest.raises(UserError, match="row 0 .id 'bad'"):
        dataset[0]


def test_a_detour_inside_the_folder_is_fine(folder, tokenizer):
    (folder / "images" / "sub").mkdir()
    rows = [{"image": "sub/../a.png", "conversations": PAIR}]
    assert finetune(folder, tokenizer, rows)[0]["pixel_values"].tolist() == [10, 20, 30]


def test_an_image_folder_that_is_a_link_is_fine(folder, tokenizer):
    os.rename(folder / "images", folder / "disk")
    os.symlink(folder / "disk", folder / "images")
    rows = [{"image": "a.png", "conversations": PAIR}]
    assert finetune(folder, tokenizer, rows)[0]["pixel_values"].tolist() == [10, 20, 30]


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
    dataset = FinetuneDataset(
        write_rows(folder, rows), folder / "images", towers, tokenizer, ZephyrChatPromptBuilder, on_bad_image="skip"
    )
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
    places = write_rows(folder, rows), folder / "images"
    skipping = FinetuneDataset(*places, strict, tokenizer, ZephyrChatPromptBuilder, on_bad_image="skip")
    assert skipping[0]["pixel_values"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="a bug in the transform"):
        FinetuneDataset(*places, faulty, tokenizer, ZephyrChatPromptBuilder, on_bad_image="skip")[0]


def test_skipped_rows_are_carried_out_of_workers(folder, tokenizer, capfd):
    rows = [
        {"id": index, "image": "absent.png" if index in (1, 4, 5) else "a.png", "conversations": PAIR}
        for index in range(6)
    ]
    dataset = FinetuneDataset(
        write_rows(folder, rows), folder / "images", first_pixel, tokenizer, ZephyrChatPromptBuilder, "skip"
    )
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
        FinetuneDataset(
            write_rows(folder, [GOOD]), folder / "images", first_pixel, tokenizer, ZephyrChatPromptBuilder, **option
        )


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


def test_a_link_inside_the_image_folder_is_the_users_own(folder, tokenizer):
    """A common layout: one folder a source, each a link to the disk that holds it."""
    os.rename(folder / "images", folder / "disk")
    (folder / "images").mkdir()
    os.symlink(folder / "disk", folder / "images" / "coco")
    rows = [{"image": "coco/a.png", "conversations": PAIR}]
    assert finetune(folder, tokenizer, rows)[0]["pixel_values"].tolist() == [10, 20, 30]


def test_an_align_row_without_an_image_is_refused(folder, tokenizer):
    """Only images reach the projector, the one module that the align stage trains."""
    (folder / "rows.json").write_text(json.dumps([{"id": "t", "conversations": PAIR}]))
    with pytest.raises(UserError, match=r"row 0 \(id 't'\).*no image"):
        AlignDataset(folder / "rows.json", folder / "images", lambda image: image, tokenizer)
