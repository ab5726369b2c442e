"""Stages are told apart while an answer comes, whatever the pieces."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.reasoning.trace import STAGE_TAG, STAGE_TAGS, StageReader, extract_reasoning_trace


def blocks(pieces):
    """(stage, text) of every block of an answer that comes in pieces."""
    reader = StageReader()
    parts = [part for piece in pieces for part in reader.feed(piece)] + list(reader.finish())
    found = []
    for part in parts:
        if part.block == len(found):
            found.append([part.stage, ""])
        # Text is only ever added to the newest block.
        assert part.block == len(found) - 1 and part.stage == found[-1][0]
        found[-1][1] += part.text
    return [tuple(block) for block in found]


FOUR = "\n\n".join(f"<{tag}> about {tag.lower()} </{tag}>" for tag in STAGE_TAGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FOUR, [(tag, f"about {tag.lower()}") for tag in STAGE_TAGS]),
        ("A red circle.", [(None, "A red circle.")]),
        ("", []),
        (" \n ", []),
        ("<SUMMARY> </SUMMARY>", [("SUMMARY", "")]),
        ("<SUMMARY> a <CAPTION> b", [("SUMMARY", "a"), ("CAPTION", "b")]),
        ("x <SUMMARY>a</SUMMARY> y", [(None, "x"), ("SUMMARY", "a"), (None, "y")]),
        ("< SUMMARY > a\n b < / SUMMARY>", [("SUMMARY", "a\n b")]),
        ("<SUMMARY>a</CAPTION> b</SUMMARY>", [("SUMMARY", "a"), (None, "b")]),
        ("if x <SUM and y<C then", [(None, "if x <SUM and y<C then")]),
        ("<script>alert(1)</script><SUMMARY>&lt;", [(None, "<script>alert(1)</script>"), ("SUMMARY", "&lt;")]),
        ("ends in <CONCLU", [(None, "ends in <CONCLU")]),
        ("</SUMMARY> a", [(None, "a")]),
        ("<CAPTION>a</CAPTION><CAPTION>b</CAPTION>", [("CAPTION", "a"), ("CAPTION", "b")]),
    ],
)
def test_blocks_are_those_of_the_text_whatever_the_pieces(text, expected):
    assert blocks([text]) == expected
    assert blocks(text) == expected


SNIPPETS = [*(f"<{tag}>" for tag in STAGE_TAGS), *(f" </{tag}>" for tag in STAGE_TAGS)]
SNIPPETS += ["<", "</", ">", " ", "\n", "a", "SUM", "< CAPTION", "<<", "\ufffd", "<b>"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=12), st.data())
def test_cuts_change_nothing(snippets, data):
    text = "".join(snippets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert blocks(pieces) == blocks([text])


@settings(max_examples=200)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=12))
def test_stages_are_those_of_the_reader_of_whole_answers(snippets):
    text = "".join(snippets)
    found = blocks(text)
    first = {stage: body for stage, body in reversed(found) if stage is not None}
    assert {stage.lower(): body for stage, body in first.items()} == dict(extract_reasoning_trace(text).texts)
    # A stage ends at the next tag of any kind; so does text outside.
    between = [part.strip() for part in STAGE_TAG.sub("\0", text).split("\0")]
    assert [body for _, body in found if body] == [part for part in between if part]


def test_a_stage_is_told_when_it_opens_and_text_at_once():
    reader = StageReader()
    assert [(part.stage, part.text) for part in reader.feed("<CAPTION>")] == [("CAPTION", "")]
    assert [part.text for part in reader.feed(" A red")] == ["A red"]
    # White space and what may be a tag wait for what comes next.
    assert list(reader.feed(" ")) == [] and list(reader.feed("</CAP")) == []
    assert [part.text for part in reader.feed("E")] == [" </CAPE"]


def test_hostile_text_takes_linear_time():
    """A quadratic reader would take hours for this."""
    began = time.monotonic()
    assert blocks(["<" * 200_000]) == [(None, "<" * 200_000)]
    blocks([" " * 500_000, "<SUMMARY>", "< " * 200_000, " " * 500_000, "x"])
    assert time.monotonic() - began < 250
