"""The four stages of an answer, read apart and written."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.reasoning.trace import (
    DUPLICATED,
    EMPTY,
    OUT_OF_ORDER,
    STAGES,
    STRAY_CLOSING,
    TEXT_OUTSIDE,
    UNCLOSED,
    ReasoningTrace,
    extract_reasoning_trace,
    find_unfinished_tag,
    format_reasoning_trace,
    last_closed_stage,
)

PUBLISHED = (
    "<SUMMARY> I will count. </SUMMARY>\n\n<CAPTION> Two cups. </CAPTION>\n\n"
    "<REASONING> One and one. </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)


def test_published_form_is_read_and_written_back():
    trace = extract_reasoning_trace(PUBLISHED)
    assert trace == ReasoningTrace("I will count.", "Two cups.", "One and one.", "2")
    assert trace.is_valid and trace.missing == ()
    assert format_reasoning_trace(trace) == PUBLISHED


def test_white_space_is_free():
    text = "\n <SUMMARY>a</SUMMARY><CAPTION>\n\tb\n</CAPTION >  < REASONING >c</ REASONING>\r\n"
    text += "<CONCLUSION>d< /CONCLUSION>\n"
    trace = extract_reasoning_trace(text)
    assert trace == ReasoningTrace("a", "b", "c", "d")
    assert trace.is_valid


def test_unclosed_conclusion_is_read_to_the_end():
    trace = extract_reasoning_trace(PUBLISHED.removesuffix("</CONCLUSION>") + "apples\n")
    assert trace.conclusion == "2 apples"
    assert trace.missing == () and trace.problems == (UNCLOSED,) and not trace.is_valid


def test_answer_cut_off_keeps_what_came():
    trace = extract_reasoning_trace("<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> because")
    assert trace.reasoning == "because" and trace.conclusion is None
    assert trace.missing == ("conclusion",) and not trace.is_valid


@pytest.mark.parametrize("text", ["", "   ", "B", "The <summary> is </summary> lower case", "<SUMMARY", "a < b > c"])
def test_answer_without_tags_has_every_stage_missing(text):
    trace = extract_reasoning_trace(text)
    assert trace.missing == STAGES
    assert trace.conclusion is None and not trace.is_valid


def test_only_a_conclusion():
    trace = extract_reasoning_trace("<CONCLUSION> B </CONCLUSION>")
    assert trace.conclusion == "B"
    assert trace.missing == ("summary", "caption", "reasoning") and not trace.is_valid


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PUBLISHED + "\n\n<CAPTION> again </CAPTION>", DUPLICATED),
        ("Sure! " + PUBLISHED, TEXT_OUTSIDE),
        (PUBLISHED + " Bye.", TEXT_OUTSIDE),
        (PUBLISHED.replace("Two cups.", " "), EMPTY),
        (PUBLISHED.replace("</CAPTION>", ""), UNCLOSED),
        (PUBLISHED.replace("</CAPTION>", "</SUMMARY>"), STRAY_CLOSING),
        (PUBLISHED + "</CONCLUSION>", STRAY_CLOSING),
        ("\n".join(reversed(PUBLISHED.split("\n\n"))), OUT_OF_ORDER),
    ],
)
def test_each_fault_of_form_is_named_and_invalid(text, problem):
    trace = extract_reasoning_trace(text)
    assert problem in trace.problems
    assert trace.missing == () and not trace.is_valid


def test_first_of_a_repeated_stage_counts():
    trace = extract_reasoning_trace("<CONCLUSION> A </CONCLUSION> <CONCLUSION> B </CONCLUSION>")
    assert trace.conclusion == "A"


def test_unclosed_stage_ends_at_the_next_tag():
    trace = extract_reasoning_trace("<SUMMARY> s <CAPTION> c </CAPTION> <CONCLUSION> B </REASONING> more")
    assert (trace.summary, trace.caption, trace.conclusion) == ("s", "c", "B")


def test_format_leaves_absent_stages_out():
    assert format_reasoning_trace(ReasoningTrace(caption="c", conclusion="d")) == (
        "<CAPTION> c </CAPTION>\n\n<CONCLUSION> d </CONCLUSION>"
    )
    assert format_reasoning_trace(ReasoningTrace()) == ""


filled = st.text(st.characters(exclude_characters="<>"), min_size=1).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.tuples(filled, filled, filled, filled))
def test_writing_then_reading_gives_the_same(texts):
    trace = ReasoningTrace(*texts)
    assert trace.is_valid
    assert extract_reasoning_trace(format_reasoning_trace(trace)) == trace


pieces = st.sampled_from(
    [f"<{slash}{stage.upper()}>" for stage in STAGES for slash in ("", "/")]
    + ["<", ">", "/", " ", "\n", "SUMMARY", "x"]
)


@settings(deadline=None)
@given(st.lists(pieces).map("".join) | st.text())
def test_any_text_is_read_without_error_and_consistently(text):
    trace = extract_reasoning_trace(text)
    for stage in STAGES:
        body = getattr(trace, stage)
        assert (body is None) == (stage in trace.missing)
        assert body is None or (body == body.strip() and body in text)
    if trace.is_valid:
        rewritten = extract_reasoning_trace(format_reasoning_trace(trace))
        assert rewritten == trace


@settings(deadline=None)
@given(
    pieces, st.sampled_from([" ", "\n", "/", "<", "<SUMMARY", "<SUMMARY ", "</", "<CONCLUSION>", "<SUMMARY></SUMMARY>"])
)
def test_hostile_text_takes_linear_time(start, unit):
    text = start + unit * (200_000 // len(unit)) + "SUMMARY"
    begin = time.process_time()
    extract_reasoning_trace(text)
    assert last_closed_stage(text) is None
    assert find_unfinished_tag(text) is None or "<" in text[-64:]
    # Quadratic time would be minutes; linear is some milliseconds.
    assert time.process_time() - begin < 2


def test_texts_and_faults_of_an_answer():
    trace = extract_reasoning_trace("<CAPTION> a cat </CAPTION> so <CONCLUSION> B")
    assert trace.texts == [("caption", "a cat"), ("conclusion", "B")]
    assert trace.faults == ["without SUMMARY", "without REASONING", "text outside the stages", "unclosed stage"]
    plain = extract_reasoning_trace("a cat </CAPTION>")
    assert (plain.texts, plain.faults) == ([], [])


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("a </SUMMARY>", "SUMMARY"),
        ("< / CAPTION >\n\n", "CAPTION"),
        ("</SUMMARY> a", None),
        ("<SUMMARY>", None),
        ("", None),
    ],
)
def test_closing_tags_at_the_end_of_a_text(text, stage):
    assert last_closed_stage(text) == stage


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("<CONCLUSION> B </CONCLUSION>", "B"),
        ("x < CONCLUSION >\n B\n", "B"),
        ("<CONCLUSION> A </CONCLUSION> <CONCLUSION> B </CONCLUSION>", "A"),
        ("<CONCLUSION> a <CAPTION> b", "a"),
        ("<CONCLUSION></CONCLUSION>", ""),
        ("B", None),
    ],
)
def test_conclusions(text, conclusion):
    assert extract_reasoning_trace(text).conclusion == conclusion
