"""Tokens of every row: as many as the dataset makes, and no token too few for the CONCLUSION."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ByT5Tokenizer

import cobra.models.tiny
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PurePromptBuilder, ZephyrChatPromptBuilder
from cobra.preprocessing.datasets import FinetuneDataset
from cobra.preprocessing.datasets import token_lengths as lengths
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.datasets.token_lengths import count_unlabelled, token_lengths
from cobra.reasoning.trace import extract_reasoning_trace, find_conclusion_end
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.errors import UserError

STAGES = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(cobra.models.tiny.__file__).parent, 10**9)


def talk(*texts):
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": len(texts), "conversations": turns}


def write_rows(folder, *rows):
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def encoded(folder, tokenizer, builder=ZephyrChatPromptBuilder, **options):
    return FinetuneDataset(folder / "rows.json", folder, torch.tensor, tokenizer, builder, **options)


ROWS = {
    "closed": (talk("What?", f"{STAGES}<CONCLUSION> A cat. </CONCLUSION>"), "<CONCLUSION> A cat. </CONCLUSION>"),
    "text behind": (talk("What?", "<CONCLUSION> A cat. </CONCLUSION> Really."), "<CONCLUSION> A cat. </CONCLUSION>"),
    "unclosed": (talk("What?", "<CONCLUSION> A cat, I think \n"), "<CONCLUSION> A cat, I think"),
    "many bytes": (talk("What?", "<CONCLUSION> \u00bd \U0001f600\u4e2d"), "<CONCLUSION> \u00bd \U0001f600\u4e2d"),
    "cut by a tag": (talk("What?", "<CONCLUSION> 3 <SUMMARY> s"), "<CONCLUSION> 3"),
    "repeated": (talk("?", "<CONCLUSION> 3 </CONCLUSION> <CONCLUSION> 4"), "<CONCLUSION> 3 </CONCLUSION>"),
    "placeholder": (talk("?", " <CONCLUSION> <image>3</CONCLUSION>"), "<CONCLUSION> 3</CONCLUSION>"),
    "several": (talk("?", "<CONCLUSION> 1 </CONCLUSION>", "?", "<CONCLUSION> 22 </CONCLUSION>"), "22 </CONCLUSION>"),
    "dangling": (talk("?", "<CONCLUSION> 1 </CONCLUSION>", "And?"), "<CONCLUSION> 1 </CONCLUSION>"),
    "none": (talk("What?", "A cat."), "A cat.<|endoftext|>"),
    "none, dangling": (talk("What?", "A cat.", "And?"), "A cat.<|endoftext|>"),
    "in an earlier answer only": (talk("?", "<CONCLUSION> 1 </CONCLUSION>", "?", "Yes"), "Yes<|endoftext|>"),
    "empty answer": (talk("?", ""), "\n <|endoftext|>"),
}


@pytest.mark.parametrize("case", ROWS)
def test_conclusion_end_is_the_least_number_of_tokens_that_holds_it(tmp_path, tokenizer, case):
    row, ending = ROWS[case]
    counted = token_lengths(write_rows(tmp_path, row, talk("?", "Yes")), tokenizer, ZephyrChatPromptBuilder)
    ids = encoded(tmp_path, tokenizer)[0]["input_ids"].tolist()
    (tokens, _), (end, _) = counted.tokens.tolist(), counted.conclusion_end.tolist()
    assert tokens == len(ids)
    assert ending in tokenizer.decode(ids[:end])
    # From the right, as the ending may stand there twice.
    assert tokenizer.decode(ids[:end]).count(ending) > tokenizer.decode(ids[: end - 1]).count(ending)


@pytest.mark.parametrize("builder", [ZephyrChatPromptBuilder, MambaPromptBuilder, PurePromptBuilder])
def test_counts_are_those_of_the_dataset_over_several_chunks(tmp_path, tokenizer, builder):
    draw = np.random.default_rng(0)
    answers = ["word " * int(draw.integers(40)) + f"<CONCLUSION> {n} </CONCLUSION>" for n in range(600)]
    write_rows(tmp_path, *(talk(*["What?", answer] * int(draw.integers(1, 4))) for answer in answers))
    counted = token_lengths(tmp_path / "rows.json", tokenizer, builder)
    assert counted.tokens.dtype == counted.conclusion_end.dtype == np.int32
    dataset = encoded(tmp_path, tokenizer, builder)
    assert counted.tokens.tolist() == [len(dataset[index]["input_ids"]) for index in range(600)]
    limit = int(np.median(counted.conclusion_end))
    cut = [
        f"<CONCLUSION> {index} </CONCLUSION>" not in tokenizer.decode(dataset[index]["input_ids"][:limit])
        for index in range(600)
        if len(dataset.examples[index]["conversations"]) == 2
    ]
    single = [len(row["conversations"]) == 2 for row in dataset.examples]
    assert counted.cut(limit)[single].tolist() == cut
    assert any(cut) and not all(cut)


def test_a_tokenizer_in_plain_python_counts_too(tmp_path):
    """It does not tell where in the text a token is; one of bytes has none that crosses the end."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    path = write_rows(tmp_path, *(row for row, _ in ROWS.values()))
    counted = token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    dataset = encoded(tmp_path, tokenizer)
    dataset.tokenizer.model_max_length = 10**9
    assert counted.tokens.tolist() == [len(dataset[index]["input_ids"]) for index in range(len(ROWS))]
    # The special token that it puts behind every text is counted with the beginning: one more at most.
    prompt = "<|user|>\nWhat?<|endoftext|>\n<|assistant|>\n"
    answer = ROWS["text behind"][0]["conversations"][1]["value"].removesuffix(" Really.")
    exact = len(tokenizer(prompt).input_ids) + len(tokenizer(answer, add_special_tokens=False).input_ids)
    assert 0 <= counted.conclusion_end[list(ROWS).index("text behind")] - exact <= 1


@given(st.lists(st.sampled_from(["<CONCLUSION>", "</CONCLUSION>", "<CAPTION>", "</CAPTION>", " ", "a", "\n"])))
@settings(max_examples=300)
def test_the_end_agrees_with_the_trace(parts):
    text = "".join(parts)
    end, conclusion = find_conclusion_end(text), extract_reasoning_trace(text).conclusion
    assert (end is None) == (conclusion is None)
    if end is not None:
        assert extract_reasoning_trace(text[:end]).conclusion == conclusion
        assert text[:end].rstrip() == text[:end]


@pytest.fixture
def counted_once(monkeypatch):
    """The number of times that rows were counted."""
    calls = []
    count = lengths._count
    monkeypatch.setattr(lengths, "_count", lambda *arguments: calls.append(1) or count(*arguments))
    return calls


def test_counts_are_kept(tmp_path, tokenizer, counted_once):
    path = write_rows(tmp_path, talk("What?", "A cat."), talk("What?", "A dog and a cat."))
    first = token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    # What a call leaves behind in the tokenizer plays no part.
    tokenizer(["some text", "x"], truncation=True, max_length=3, padding=True)
    again = token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    assert len(counted_once) == 1
    assert first.tokens.tolist() == again.tokens.tolist()
    token_lengths(path, tokenizer, MambaPromptBuilder)
    assert len(counted_once) == 2
    token_lengths(path, ByT5Tokenizer(), ZephyrChatPromptBuilder)
    assert len(counted_once) == 3
    token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    assert len(counted_once) == 3


@pytest.mark.fault("A9")
def test_changed_rows_and_damaged_counts_are_counted_again(tmp_path, tokenizer, counted_once):
    path = write_rows(tmp_path, talk("What?", "A cat."))
    expected = token_lengths(path, tokenizer, ZephyrChatPromptBuilder).tokens.tolist()
    (kept,) = tmp_path.glob(".*.lengths.npz")
    for content in (b"", b"text", kept.read_bytes()[:-30]):
        kept.write_bytes(content)
        assert token_lengths(path, tokenizer, ZephyrChatPromptBuilder).tokens.tolist() == expected
    assert len(counted_once) == 4
    os.utime(path, ns=(1, 1))
    assert token_lengths(path, tokenizer, ZephyrChatPromptBuilder).tokens.tolist() == expected
    assert len(counted_once) == 4
    # Of the same size and time.
    write_rows(tmp_path, talk("What?", "A dog."))
    os.utime(path, ns=(1, 1))
    token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    assert len(counted_once) == 5


def test_pickles_of_others_are_not_read(tmp_path, tokenizer, counted_once):
    path = write_rows(tmp_path, talk("What?", "A cat."))
    token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    (kept,) = tmp_path.glob(".*.lengths.npz")
    with kept.open("wb") as file:
        np.savez(file, key=np.array([{}], dtype=object), tokens=np.zeros(1), conclusion_end=np.zeros(1))
    token_lengths(path, tokenizer, ZephyrChatPromptBuilder)
    assert len(counted_once) == 2


LONG = "word " * 50


@pytest.fixture
def dropped(tmp_path):
    """Of four rows the second and the fourth do not fit, and the third loses only what follows its CONCLUSION."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write_rows(
        tmp_path,
        talk("What?", "<CONCLUSION> 1 </CONCLUSION>"),
        talk("What?", f"{LONG}<CONCLUSION> 2 </CONCLUSION>"),
        talk("What?", f"<CONCLUSION> 3 </CONCLUSION>{LONG}") | {"id": "third", "image": "absent.png"},
        talk("What?", LONG),
    )
    return tmp_path


def test_rows_whose_conclusion_would_be_cut_are_left_out(dropped, tokenizer):
    dataset = encoded(dropped, _limited(80), truncation="drop")
    assert len(dataset) == 2 and dataset.left_out == 2
    assert [row["id"] for row in dataset.examples] == [2, "third"]
    assert dataset.get_modality_lengths() == [(False, 4), (True, 4 + 49)]
    assert "<CONCLUSION> 1 </CONCLUSION>" in tokenizer.decode(dataset[0]["input_ids"])
    with pytest.raises(UserError, match=r"row 2 \(id 'third'\)"):
        dataset[1]


def test_by_default_rows_are_cut_and_kept(dropped):
    dataset = encoded(dropped, _limited(80))
    assert len(dataset) == 4 and dataset.left_out == 0
    assert len(dataset[1]["input_ids"]) == 80


def test_when_no_row_is_left_the_error_names_both_ways_out(dropped):
    with pytest.raises(UserError, match="--model.llm_max_length.*--dataset.truncation right"):
        encoded(dropped, _limited(5), truncation="drop")


def _limited(limit):
    return load_tokenizer(Path(cobra.models.tiny.__file__).parent, limit)


def test_a_row_without_an_answer_is_counted_whole(tmp_path, tokenizer):
    counted = token_lengths(write_rows(tmp_path, talk("What?")), tokenizer, ZephyrChatPromptBuilder)
    prompt = tokenizer(ZephyrChatPromptBuilder("cobra").add_turn("human", "What?")).input_ids
    assert counted.tokens.tolist() == counted.conclusion_end.tolist() == [len(prompt)]


@pytest.mark.fault("F4")
@pytest.mark.parametrize("builder", [ZephyrChatPromptBuilder, MambaPromptBuilder, PurePromptBuilder])
def test_rows_are_unlabelled_exactly_where_the_question_fills_the_length(tmp_path, tokenizer, builder):
    tokenizer = copy.copy(tokenizer)
    tokenizer.model_max_length = 30
    write_rows(tmp_path, *(talk("long word " * words + "\u00bd" * (words % 3), "Yes.") for words in range(1, 25)))
    dataset = encoded(tmp_path, tokenizer, builder)
    labelled = [bool((dataset[index]["labels"] != IGNORE_INDEX).any()) for index in range(len(dataset))]
    assert dataset.unlabelled == labelled.count(False) > 0
    assert labelled.count(True) > 0


@pytest.mark.fault("F4")
def test_only_long_questions_are_tokenised_to_count_labels(tmp_path, tokenizer, monkeypatch):
    tokenizer = copy.copy(tokenizer)
    tokenizer.model_max_length = 200
    long = "word " * 60
    rows = read_rows(write_rows(tmp_path, *[talk("What?", "x " * 500)] * 50, talk(long, "Yes.")))
    seen = []
    monkeypatch.setattr(lengths, "_encode", lambda tokenizer, texts: seen.extend(texts) or tokenizer(texts))
    assert count_unlabelled(rows, tokenizer, MambaPromptBuilder) == 0
    assert seen == [f"In: {long.strip()}\nOut: "]
