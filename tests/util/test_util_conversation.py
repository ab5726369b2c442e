"""Special tokens in texts: found, taken out so that none comes together anew, and told from ordinary text."""

import time
from pathlib import Path

import pytest

import cobra.models.tiny
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.util.conversation import (
    SPECIAL_TOKENS,
    has_other_markers,
    has_special_tokens,
    without_placeholder,
    without_special_tokens,
)

pytestmark = pytest.mark.fault("F16")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(cobra.models.tiny.__file__).parent, 2048)


def test_they_are_those_of_the_tokenizer(tokenizer):
    assert set(SPECIAL_TOKENS) == set(tokenizer.all_special_tokens)
    assert tokenizer.eos_token == SPECIAL_TOKENS[0]


CLEANED = {
    "A red square.<|endoftext|>And a blue one.": "A red square. And a blue one.",
    "Hi <|endoftext|> there": "Hi there",
    "One.<|endoftext|>": "One. ",
    "<|endoftext|><|padding|> \t<|endoftext|>": "   ",
    "a\n<|endoftext|>\n  b": "a\n \n  b",
    "<|endof<|endoftext|>text|>": "<|endof text|>",
    "<|endoftext|<|endoftext|>>": "<|endoftext| >",
    "<|ENDOFTEXT|> <|endoftext |> </s>  ": "<|ENDOFTEXT|> <|endoftext |> </s>  ",
}


@pytest.mark.parametrize("text", CLEANED)
def test_what_is_taken_out(text, tokenizer):
    found = without_special_tokens(text)
    assert found == CLEANED[text]
    assert has_special_tokens(text) == (found != text)
    assert not has_special_tokens(found)
    assert not set(tokenizer(found).input_ids) & set(tokenizer.all_special_ids)
    assert has_special_tokens(text) == bool(set(tokenizer(text).input_ids) & set(tokenizer.all_special_ids))


OTHERS = ["a</s>", "<s>", "<|im_end|>", "<|user|>", "[INST] a [/INST]", "<end_of_turn>", "a\nUSER: b", "### Human: a"]
PLAIN = ["a red <b>square</b>", "<|endoftext|>", "the USER: field", "[1]", "<SUMMARY> a </SUMMARY>", "a | b <| c"]


def test_markers_of_other_tools_are_told_from_plain_text():
    assert [text for text in OTHERS if not has_other_markers(text)] == []
    assert [text for text in PLAIN if has_other_markers(text)] == []


@pytest.mark.parametrize("piece", ["\t ", "<|a", "<|endoftext|", "[/", "###", "<|endoftext|>  "])
def test_long_texts_take_time_in_proportion(piece):
    text = piece * (2_000_000 // len(piece))
    began = time.process_time()
    has_other_markers(without_special_tokens(text))
    # A tenth of a second; by the square of the length it would be minutes.
    assert time.process_time() - began < 20


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_no_special_token_comes_together_around_a_placeholder(token):
    torn = f"<image>{token[:5]}<image>{token[5:]} hello"
    assert not has_special_tokens(without_placeholder(torn)) and not has_special_tokens(torn)
    assert without_placeholder(f"<image>\nWhat{token}?<image>") == f"What{token}?"
