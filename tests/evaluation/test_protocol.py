"""How the variants answer."""

import pytest
from fake_vlm import FakeVLM

from cobra.evaluation.protocol import (
    ANALYSIS_PROMPT,
    DEFAULT_PROMPT,
    SCRATCHPAD_TOKENS,
    Protocol,
    answer_images,
    scored_text,
    second_prompt,
)
from cobra.util.errors import UserError

STAGED = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> a dog"


@pytest.mark.parametrize(
    ("raw", "scored", "source"),
    [
        (f"{STAGED} </CONCLUSION>", "a dog", "conclusion"),
        (STAGED, "a dog", "conclusion"),
        ("<CAPTION> a cat </CAPTION> <REASONING> because", "a cat", "caption"),
        ("<CAPTION> a cat </CAPTION> <CONCLUSION> </CONCLUSION>", "a cat", "caption"),
        (" A plain caption.\n", "A plain caption.", "text"),
        ("<SUMMARY> only this", "<SUMMARY> only this", "text"),
        ("", "", "text"),
    ],
)
def test_what_is_scored(raw, scored, source):
    assert scored_text(raw) == (scored, source)


@pytest.mark.parametrize(
    ("analysis", "expected"),
    [
        ("It is red.\n", "An analysis of the image:\nIt is red.\n\nCaption?"),
        (STAGED, "An analysis of the image:\ns\nc\nr\n\nCaption?"),
        ("<SUMMARY> s </SUMMARY> <CAPTION> cut off he", "An analysis of the image:\ns\ncut off he\n\nCaption?"),
        ("{prompt} and {analysis}", "An analysis of the image:\n{prompt} and {analysis}\n\nCaption?"),
        ("<CONCLUSION> a dog </CONCLUSION>", "Caption?"),
        ("  ", "Caption?"),
    ],
)
def test_second_prompt_holds_the_analysis_and_never_the_conclusion(analysis, expected):
    assert second_prompt(analysis, "Caption?") == expected


def test_a_stock_model_is_asked_for_an_analysis(captions):
    vlm = FakeVLM("stock")
    images = captions.images
    answers = answer_images(vlm, images, captions.image_dir, Protocol(batch_size=4), True, False, "x")
    assert [answer.image_id for answer in answers] == [image.image_id for image in images]
    assert answers[1].analysis == "I see green."
    assert answers[1].prompt == f"An analysis of the image:\nI see green.\n\n{DEFAULT_PROMPT}"
    assert answers[1].raw == answers[1].scored == "a green square on a wall"
    assert not answers[1].valid_structure
    # Six images in batches of four, for each pass with its own limit.
    assert vlm.calls == [(4, SCRATCHPAD_TOKENS), (2, SCRATCHPAD_TOKENS), (4, 512), (2, 512)]


def test_a_fine_tuned_model_uses_its_own_stages(captions):
    vlm = FakeVLM("tuned", staged=True)
    protocol = Protocol(prompt="Caption?", max_new_tokens=64)
    answers = answer_images(vlm, captions.images, captions.image_dir, protocol, True, True, "x")
    assert answers[2].analysis.endswith("<CONCLUSION> a blue square </CONCLUSION>")
    assert answers[2].prompt == "An analysis of the image:\ns blue\nc\nr\n\nCaption?"
    assert ANALYSIS_PROMPT not in answers[2].prompt
    assert (answers[2].scored, answers[2].source, answers[2].valid_structure) == (
        "a blue square on a wall",
        "conclusion",
        True,
    )
    assert vlm.calls == [(6, SCRATCHPAD_TOKENS), (6, 64)]


def test_without_a_scratchpad_there_is_one_pass(captions):
    vlm = FakeVLM("stock")
    answers = answer_images(vlm, captions.images, captions.image_dir, Protocol(prompt="Caption?"), False, False, "x")
    assert {answer.prompt for answer in answers} == {"Caption?"} and {answer.analysis for answer in answers} == {None}
    assert vlm.calls == [(6, 512)]


def test_an_image_that_broke_meanwhile_is_named(captions):
    (captions.image_dir / "val" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        answer_images(FakeVLM("x"), captions.images, captions.image_dir, Protocol(), False, False, "x")


def test_the_hash_is_of_the_wordings_alone():
    assert Protocol().prompt_sha256 == Protocol(batch_size=1, max_new_tokens=3).prompt_sha256
    assert Protocol().prompt_sha256 != Protocol(prompt=DEFAULT_PROMPT + " ").prompt_sha256
    assert set(Protocol().wordings.values()) >= {DEFAULT_PROMPT, ANALYSIS_PROMPT}
