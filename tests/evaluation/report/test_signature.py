"""The line that says what scores depend on."""

from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.report.signature import signature_line

PARTS = {
    "n": 40,
    "tokenizer": "ptb-3.4.1",
    "idf": "references",
    "versions": {"torch": "2.13.0", "absent": None, "cobra": "0.1"},
}


def test_all_parts_are_named():
    line = signature_line(
        **PARTS,
        prompt_sha256="ab" * 32,
        decoding={"do_sample": False, "max_new_tokens": 64},
        checkpoints={"baseline": "12" * 32, "finetuned": "34" * 32},
    )
    assert line == (
        "n:40|tok:ptb-3.4.1|idf:references|prompt:abababababab|decoding:greedy,max_new_tokens=64"
        "|baseline.sha256:121212121212|finetuned.sha256:343434343434|torch:2.13.0|cobra:0.1"
    )


def test_without_a_model_and_without_cider():
    assert signature_line(**PARTS | {"idf": None}) == "n:40|tok:ptb-3.4.1|torch:2.13.0|cobra:0.1"


def test_what_differs_differs_in_the_line():
    plain = signature_line(**PARTS)
    for change in ({"n": 41}, {"tokenizer": "other"}, {"idf": "file"}, {"versions": {"torch": "2.14"}}):
        assert signature_line(**PARTS | change) != plain
    for extra in ({"prompt_sha256": "00" * 32}, {"decoding": {"do_sample": True}}, {"checkpoints": {"a": "0" * 64}}):
        assert signature_line(**PARTS, **extra) != plain


@given(st.text())
def test_no_value_ends_its_part_or_the_line(text):
    line = signature_line(**PARTS | {"idf": text})
    assert len(line.split("|")) == 5 and len(line.splitlines()) == 1 and line.startswith("n:40|tok:ptb-3.4.1|idf:")
