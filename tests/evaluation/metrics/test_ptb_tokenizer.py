"""The tokens of coco-caption."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS, count_cut, one_line, tokenize


def load(golden_dir, name):
    path = golden_dir / name
    if not path.is_file():
        pytest.skip(f"this golden set has no {name}")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.fault("D7")
@pytest.mark.parametrize("name", ["ptb_strings.json", "quotes_and_units.json"])
def test_golden_odd_strings(golden_dir, name):
    rows = load(golden_dir, name)
    wrong = [(row["text"], row["tokens"], tokenize(row["text"])) for row in rows]
    assert [row for row in wrong if " ".join(row[2]) != row[1]] == []


def test_golden_captions(golden_dir):
    images = load(golden_dir, "captions.json")["images"]
    pairs = [(image["hypothesis"], image["hypothesis_tokens"]) for image in images]
    pairs += [pair for image in images for pair in zip(image["references"], image["reference_tokens"], strict=True)]
    assert [(text, tokens) for text, tokens in pairs if " ".join(tokenize(text)) != tokens] == []


# Observed from PTBTokenizer 3.4.1 through pycocoevalcap 1.2, beyond the golden strings.
OBSERVED = [
    ("A sign that reads K.", "a sign that reads k"),
    ("the U.S. flag at 5 p.m.", "the u.s. flag at 5 p.m."),
    ("a street sign reads Blvd. and Ave.", "a street sign reads blvd. and ave."),
    ("a cutting board.Cabbage is here", "a cutting board.cabbage is here"),
    ("it is red., blue and green", "it is red. blue and green"),
    ("y'all can't've", "y' all ca n't 've"),
    ("don\u2019t look at the \u201980s", "do n't look at the \u201980s"),
    ("'tis a jack-o'-lantern", "'t is a jack-o lantern"),
    ("a man :-) :( waving", "a man :--rrb- :-lrb- waving"),
    ("call (555) 555-1234 now", "call -lrb-555-rrb-\xa0555-1234 now"),
    ("M&M's, A&W and b&w", "m&m 's a&w and b & w"),
    ("<br /> <a b> a<b", "<br\xa0/> <a\xa0b> a < b"),
    ("crème-brûlée, 中文", "crème-brûlée 中文"),
    ("see www.foo.com/bar. or me@foo.com.", "see www.foo.com/bar or me@foo.com"),
    ("a \\* and ** bold **", "a \\* and ** bold **"),
    ("half\u00adway 1\u00bd cups", "halfway 1 1/2 cups"),
    ("No. 5 and no. five", "no. 5 and no five"),
    ("version 2.x at 10.5km", "version 2.x at 10.5 km"),
    ("dogs!cats and dogs?!cats", "dogs!cats and dogs ?! cats"),
    ("&lt;b&gt; &amp;c &quot;x&quot;", "< b > & c x"),
]


@pytest.mark.parametrize(("text", "tokens"), OBSERVED)
def test_tokens_observed_from_the_java_program(text, tokens):
    assert " ".join(tokenize(text)) == tokens


@pytest.mark.parametrize("separator", ["\r", "\r\n", "\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\t", "\n"])
def test_separators_are_spaces(separator):
    text = f"a dog.{separator}A cat."
    assert "\n" not in one_line(text) and one_line(text).splitlines() == [one_line(text)]
    assert tokenize(text) == ["a", "dog", "a", "cat"]


@given(st.text(max_size=80))
def test_any_text_gives_clean_tokens(text):
    tokens = tokenize(text)
    assert all(token and " " not in token and token == token.lower() for token in tokens)
    assert tokenize(" ".join(text.split(" "))) == tokens


HOSTILE = ["a,", "<a ", "<!a", "a.", "-a", "a-", "a'", "1,", "1 ", "a@", "@", "(", "<a b=", "&", "a_", "a/", "'", ":-"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_costs_linear_time(unit):
    start = time.perf_counter()
    tokenize(unit * (20_000 // len(unit)))
    # The slowest takes 0.6 s on one core of a small machine; quadratic rules took over 8.
    assert time.perf_counter() - start < 5


@pytest.mark.fault("C4")
@pytest.mark.parametrize("piece", [".", "-", "(", "<", "a ", "&amp;", "it's "])
def test_of_a_caption_without_end_the_beginning_counts(piece):
    text = piece * 4_000_000
    assert tokenize(text) == tokenize(text[:MAX_CHARACTERS])
    assert count_cut([text, text[:MAX_CHARACTERS], ""]) == 1
