"""Rows as training examples, and what bad rows, files and images are answered with."""

import json
import os

import pytest
import torch
from example_rows import PAIR, TEXT_PAIR, first_pixel, write_rows
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cobra.models.backbones.llm.prompting import MambaPromptBuilder, ZephyrChatPromptBuilder
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset, ReasoningTrace
from cobra.preprocessing.forms import training_rows
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.errors import UserError

EOS = 0


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
    example = finetune(folder, tokenizer, [{"conversations": TEXT_PAIR}], MambaPromptBuilder)[0]
    assert text_of(tokenizer, example["input_ids"]) == "In: What?\nOut: A cat.<|endoftext|>"


def test_long_rows_are_cut_on_the_right(folder, tokenizer):
    answer = "x" * tokenizer.model_max_length
    example = finetune(folder, tokenizer, [{"conversations": [TEXT_PAIR[0], {"from": "gpt", "value": answer}]}])[0]
    assert len(example["input_ids"]) == len(example["labels"]) == tokenizer.model_max_length
    assert example["labels"][-1] == example["input_ids"][-1] != EOS


def test_a_dangling_question_stays_unlabelled(folder, tokenizer):
    rows = [{"conversations": [*TEXT_PAIR, {"from": "human", "value": "Which?"}]}]
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
    rows = [{"id": index, "conversations": [TEXT_PAIR[0], {"from": "gpt", "value": str(index)}]} for index in range(3)]
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
        TEXT_PAIR[0],
        {"from": "gpt", "value": "<SUMMARY> s </SUMMARY>\n\n<CONCLUSION> 3 </CONCLUSION>"},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes"},
        {"from": "human", "value": "Why?"},
    ]
    first, second = finetune(folder, tokenizer, [{"conversations": turns}]).extract_reasoning_trace(0)
    assert isinstance(first, ReasoningTrace)
    assert (first.summary, first.conclusion) == ("s", "3")
    assert second.conclusion is None


GOOD = {"id": "good", "conversations": TEXT_PAIR}
BAD_ROWS = {
    "no conversations": ({"id": "bad"}, "no conversations"),
    "null conversations": ({"id": "bad", "conversations": None}, "no conversations"),
    "empty conversations": ({"id": "bad", "conversations": []}, "no conversations"),
    "not a turn": ({"id": "bad", "conversations": ["hello"]}, "turn 1"),
    "no value": ({"id": "bad", "conversations": [{"from": "human"}]}, "'value'"),
    "number as value": ({"id": "bad", "conversations": [{"from": "human", "value": 3}]}, "'value'"),
    "unknown role": ({"id": "bad", "conversations": [{"from": "narrator", "value": "x"}]}, "'narrator'.*'human'"),
    "list as role": ({"id": "bad", "conversations": [{"from": [], "value": "x"}]}, r"\[\].*'human'"),
    "answer first": ({"id": "bad", "conversations": PAIR[::-1]}, "'gpt'.*'human'"),
    "two questions": ({"id": "bad", "conversations": [PAIR[0], PAIR[0]]}, "turn 2.*'human'.*'gpt'"),
    "number as image": ({"id": "bad", "image": 7, "conversations": PAIR}, "image 7, which is not a path"),
    "object as image": ({"id": "bad", "image": {"path": "a.png"}, "conversations": PAIR}, "is not a path"),
    "list of images": ({"id": "bad", "image": ["a.png", "b.png"], "conversations": PAIR}, "2 images.*a row of each"),
    "lone surrogate": ({"id": "bad", "conversations": [{"from": "human", "value": "\ud800"}]}, "turn 1"),
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
        ('{"id": 1}\n{"id": 2}', r"line 1 \(id 1\) .* has no conversations"),
        ('{\n "rows": []}', "line 1 .*in the middle of a value.*JSON list of rows"),
        ("[]", "is empty. Expected is a JSON list"),
        ("", "is empty"),
        ("id,image,answer\n1,a.png,red", "is a table, .* check .*--write"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(folder, tokenizer, text, expected):
    with pytest.raises(UserError, match=expected):
        finetune(folder, tokenizer, text)


@pytest.mark.parametrize("turns", [PAIR[:1], PAIR + PAIR])
def test_align_takes_one_question_and_one_caption(folder, tokenizer, turns):
    with pytest.raises(UserError, match=f"row 1 .*{'4 turns' if len(turns) == 4 else 'no answer'}"):
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


def test_a_link_inside_the_image_folder_is_the_users_own(folder, tokenizer):
    """A common layout: one folder a source, each a link to the disk that holds it."""
    os.rename(folder / "images", folder / "disk")
    (folder / "images").mkdir()
    os.symlink(folder / "disk", folder / "images" / "coco")
    rows = [{"image": "coco/a.png", "conversations": PAIR}]
    assert finetune(folder, tokenizer, rows)[0]["pixel_values"].tolist() == [10, 20, 30]


def test_an_align_row_without_an_image_is_refused(folder, tokenizer):
    """Only images reach the projector, the one module that the align stage trains."""
    (folder / "rows.json").write_text(json.dumps([{"id": "t", "conversations": TEXT_PAIR}]))
    with pytest.raises(UserError, match=r"row 0 \(id 't'\).*no image"):
        AlignDataset(folder / "rows.json", folder / "images", lambda image: image, tokenizer)


@pytest.mark.fault("C2")
def test_turns_beyond_the_cut_are_not_tokenised_and_nothing_changes(folder, tokenizer, monkeypatch):
    """A row of 400,000 turns took minutes."""
    turns = [*TEXT_PAIR, {"from": "human", "value": "And?"}, {"from": "gpt", "value": "\u00bd"}] * 2_000
    dataset = finetune(folder, tokenizer, [{"conversations": turns}])
    builder = ZephyrChatPromptBuilder("cobra")
    texts = [builder.add_turn(turn["from"], turn["value"]) for turn in turns]
    assert builder.get_prompt() == "".join(texts)
    ids = [tokenizer(text).input_ids for text in texts[:100]]
    seen = []
    encode = dataset._encode
    monkeypatch.setattr(dataset, "_encode", lambda text: seen.append(text) or encode(text))
    example = dataset[0]
    assert example["input_ids"].tolist() == [token for turn in ids for token in turn][:400]
    marked = [token if place % 2 else IGNORE_INDEX for place, turn in enumerate(ids) for token in turn]
    assert example["labels"].tolist() == marked[:400]
    sizes = [len(turn) for turn in ids[: len(seen)]]
    assert seen == texts[: len(seen)] and sum(sizes[:-1]) < 400 <= sum(sizes)


@pytest.mark.fault("C2")
@pytest.mark.parametrize("limit", [36, 37, 43, 55, 56])
def test_a_cut_at_the_end_of_a_turn_is_like_any_other(folder, tokenizer, limit, monkeypatch):
    rows = [{"conversations": TEXT_PAIR * 3}]
    whole = finetune(folder, tokenizer, rows)[0]
    monkeypatch.setattr(tokenizer, "model_max_length", limit)
    cut = finetune(folder, tokenizer, rows)[0]
    for name in ("input_ids", "labels"):
        assert torch.equal(cut[name], whole[name][:limit])


@pytest.mark.fault("C2")
def test_a_row_of_a_size_that_no_conversation_has_is_refused(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(training_rows, "MAX_ROW_BYTES", 1000)
    row = {"id": "big", "conversations": TEXT_PAIR * 20}
    with pytest.raises(UserError, match=r"row 1 \(id 'big'\) .* bytes, more than the 1,000 that a row may have"):
        finetune(folder, tokenizer, [GOOD, row])
