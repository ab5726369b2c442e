"""The line that says what scores depend on."""

from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.report.signature import signature_line

ABOUT = {"code": {"cobra-vlm": "0.1"}, "versions": {"torch": "2.13.0", "absent": None}}
MODELS = {
    "prompt_sha256": "ab" * 32,
    "decoding": {"do_sample": False, "max_new_tokens": 64},
    "checkpoints": {"baseline": {"sha256": "12" * 32}, "finetuned": {"sha256": "34" * 32}},
}
PARTS = (40, "ptb-3.4.1", "references")


def test_all_parts_are_named():
    assert signature_line(*PARTS, ABOUT | MODELS) == (
        "n:40|tok:ptb-3.4.1|idf:references|prompt:abababababab|decoding:greedy,max_new_tokens=64"
        "|baseline.sha256:121212121212|finetuned.sha256:343434343434|cobra-vlm:0.1|torch:2.13.0"
    )


def test_without_a_model_and_without_cider():
    assert signature_line(40, "ptb-3.4.1", None, ABOUT) == "n:40|tok:ptb-3.4.1|cobra-vlm:0.1|torch:2.13.0"


def test_what_differs_differs_in_the_line():
    plain = signature_line(*PARTS, ABOUT)
    for parts in ((41, *PARTS[1:]), (40, "other", "references"), (40, "ptb-3.4.1", "file")):
        assert signature_line(*parts, ABOUT) != plain
    decoding, checkpoints = {"do_sample": True}, {"a": {"sha256": "0" * 64}}
    changes = ({"versions": {"torch": "2.14"}}, {"prompt_sha256": "00" * 32})
    for change in (*changes, {"decoding": decoding}, {"checkpoints": checkpoints}):
        assert signature_line(*PARTS, ABOUT | change) != plain


@given(st.text())
def test_no_value_ends_its_part_or_the_line(text):
    line = signature_line(40, "ptb-3.4.1", text, ABOUT)
    assert len(line.split("|")) == 5 and len(line.splitlines()) == 1 and line.startswith("n:40|tok:ptb-3.4.1|idf:")
