import json
import random
import re
import string
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cobra.demo.questions import KINDS, ask
from cobra.demo.scenes import random_scene
from cobra.demo.tiny import TINY_FOLDER
from cobra.demo.tokenizer import VOCABULARY_SIZE, train_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(TINY_FOLDER)


def test_special_tokens_are_those_of_gpt_neox(tokenizer):
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (0, 0, 0)
    assert tokenizer.pad_token_id == 1
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|endoftext|>", "<|padding|>"]
    assert len(tokenizer) == VOCABULARY_SIZE and VOCABULARY_SIZE % 8 == 0


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer("")["input_ids"] == []
    assert tokenizer("A")["input_ids"] == tokenizer("A", add_special_tokens=False)["input_ids"]
    assert len(tokenizer("A")["input_ids"]) == 1
    assert tokenizer("A<|endoftext|>")["input_ids"][1:] == [0]


def test_the_structure_equals_that_of_the_original_cobras_tokenizer():
    ours = json.loads((TINY_FOLDER / "tokenizer.json").read_text())
    theirs = json.loads((Path(__file__).parents[1] / "golden" / "hf_llm" / "tokenizer.json").read_text())
    assert ours["normalizer"] == theirs["normalizer"]
    assert ours["pre_tokenizer"] == theirs["pre_tokenizer"]
    assert ours["added_tokens"] == theirs["added_tokens"]
    for key in ("type", "unk_token", "byte_fallback", "fuse_unk"):
        assert ours["model"][key] == theirs["model"][key]


@pytest.mark.parametrize("word", ["True", "False", "Yes", "No", *string.ascii_uppercase])
def test_answers_of_one_token(tokenizer, word):
    assert len(tokenizer(word)["input_ids"]) == 1


@given(st.text())
def test_any_text_comes_back_in_nfc(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


def test_every_word_of_questions_and_answers_is_one_token_and_answers_are_short(tokenizer):
    rng = random.Random(99)
    lengths = []
    for _ in range(150):
        scene = random_scene(rng, "held-out")
        texts = []
        for kind in KINDS:
            exchange = ask(rng, scene, kind)
            if exchange:
                texts += [exchange.question, exchange.answer]
                lengths.append(len(tokenizer(exchange.answer)["input_ids"]) + 1)
        for word in {word for text in texts for word in re.findall(r" ?[A-Za-z]+", text)}:
            assert len(tokenizer(word)["input_ids"]) == 1, word
    assert sum(lengths) / len(lengths) < 75 and max(lengths) <= 95


def test_training_is_deterministic_and_writes_what_it_trained(tmp_path):
    written = write_tokenizer(tmp_path)
    assert train_tokenizer().to_str() == written.to_str()
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "<SUMMARY> I see two cyan stars. </SUMMARY>\n\n<image> caf\u00e9"
    assert loaded(text)["input_ids"] == written.encode(text).ids
    # The shipped weights belong to the shipped ids: whoever changes the demo's words must train again (`make tiny`).
    assert (tmp_path / "tokenizer.json").read_text() == (TINY_FOLDER / "tokenizer.json").read_text()
