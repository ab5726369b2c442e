"""Conclusions that say the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.reasoning.matching import Match, conclusion_key, match_conclusion, options_of

CHOICE = "Which colour is the car?\nA. red\nB. dark blue\nC. 45 degrees\nD. Yes\nAnswer with the letter."


def match(answer, truth, question=""):
    found = match_conclusion(answer, truth, question)
    assert found == match_conclusion(truth, answer, question)
    return found


EXACT = [
    "Red.|red",
    "the red car|A red  car!",
    '"B"|b',
    "**Answer: 5**|5",
    "The answer is red.|red",
    "Therefore, the correct answer is: red|Red",
    r"\boxed{5}|5",
    "$5$|5",
    "x = 5|5",
    "Option B|B",
    "\u201cred\u201d|'red'",
    "-5|\u22125",
    "\uff15|5",
    "a|A",
]
LETTER = [
    "(B)|B",
    "[B]|b",
    "B. red|B",
    "B) red|(b)",
    "(B) red|B. Red.",
    "B: red|B",
    "B - red|B",
    "The answer is (B).|b)",
    "The correct option is B. It is red|B",
    "B. red|red",
    "(B) the car|A car",
]
NUMBER = [
    "1,000|1000",
    "1e3|1000.0",
    "45 %|45",
    "\u00bd|0.5",
    "1\u00bd|1.5",
    "5 cm\u00b2|5 square centimeters",
    "two|2",
]
NUMBER += ["The answer is 5 cm.|5", "50\u00b0|50", "x = 5.0|5", "two dogs|2"]
VERDICT = [
    "Yes, it is.|Yes",
    "No. It is not.|no",
    "yes - both|Yes!",
    "True|true, because it moves",
    "No; a cat|No, never",
]
NONE = [
    "red|blue",
    "B|C",
    "(A) and (B)|A",
    "A or B|A",
    "A. red and B. blue|A",
    "A, B|A",
    "J. Smith|J. Brown",
    "U.S. map|U",
    "A dog|A",
    "B. red|C. red",
    "5 cm|5 m",
    "5\u00b2|52",
    "11/2|1\u00bd",
    "5-6|5",
    "10 million|10",
    "99|100",
    "No dogs|No",
    "No. 5|No",
    "yes and no|yes",
    "Yes|true",
    "The answer is not B|B",
    "|red",
    ".|!",
    "I|1",
]
CASES = [
    *((pair, Match.EXACT) for pair in EXACT),
    *((pair, Match.LETTER) for pair in LETTER),
    *((pair, Match.NUMBER) for pair in NUMBER),
    *((pair, Match.VERDICT) for pair in VERDICT),
    *((pair, None) for pair in NONE),
]


@pytest.mark.parametrize(("pair", "rule"), CASES, ids=[pair for pair, _ in CASES])
def test_conclusions_and_the_rule_that_holds(pair, rule):
    assert match(*pair.split("|")) == rule


CHOSEN = {"red|A": True, "Dark blue.|B": True, "45\u00b0|C": True, "45|(C)": True, "yes, it is|D": True, "red|B": False}
CHOSEN |= {
    "A. crimson|A. red": True,
    "A. dark blue|B": False,
    "blue|B": False,
    "E. red|A": False,
    "dark blue|B. blue": True,
}


@pytest.mark.parametrize(("pair", "expected"), CHOSEN.items(), ids=CHOSEN)
def test_the_words_of_a_listed_option_stand_for_its_letter(pair, expected):
    assert match(*pair.split("|"), CHOICE) == (Match.LETTER if expected else None)


OPTIONS = {
    "Which? (A) red (B) blue": {"A": "red", "B": "blue"},
    "Which?\nOptions: (a) red, (b) blue or (c) the car.": {"A": "red", "B": "blue", "C": "car"},
    "Which?\nA: 5 cm\nB: 6 cm\nExplain.": {"A": "5 cm", "B": "6 cm"},
    "A. Smith asks: which? A) x B) y": {"A": "x", "B": "y"},
    "Is vitamin A. B. good?": {"A": "", "B": "good"},
    "What did A. Smith see?": {},
    "(B) red (C) blue": {},
    "What is it?": {},
}


@pytest.mark.parametrize(("question", "options"), OPTIONS.items(), ids=OPTIONS)
def test_options_of_a_question(question, options):
    assert options_of(question) == options


LETTERS = st.sampled_from("ABCDEFGH")
FORMS = [
    "{}",
    "({})",
    "[{}]",
    "{}.",
    "{})",
    "{}: red",
    "{}. red",
    "({}) red",
    "The answer is {}",
    "Answer: ({}).",
    " *{}* ",
]
WORDS = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=20)


@given(LETTERS, LETTERS, st.sampled_from(FORMS), st.sampled_from(FORMS))
@settings(deadline=None)
def test_letters_are_the_same_in_any_form_and_no_two_letters_are(one, other, form, other_form):
    assert (match(form.format(one), other_form.format(other)) is not None) == (one == other)


@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.sampled_from(["{:,}", "{}", "{}.0", "{} dogs", "Answer: {}", "{}%"]),
)
@settings(deadline=None)
def test_numbers_are_the_same_in_any_form_and_no_two_numbers_are(one, other, form):
    assert match(form.format(one), str(one)) in (Match.EXACT, Match.NUMBER)
    if one != other and one != 100 * other:
        assert match(form.format(one), str(other)) is None


@given(WORDS, WORDS, st.sampled_from(["", CHOICE]))
@settings(deadline=None)
def test_any_texts_are_compared_alike_in_both_orders(one, other, question):
    match(one, other, question)
    assert match(one, one, question) == Match.EXACT
    assert match(f" {one}\n", one, question) == Match.EXACT


HOSTILE = ["(", '"', " ", "9", "so, ", "answer is ", "A. ", "1,", "1/", "- ", "A - ", "\\boxed{", "(A) ", "a or B "]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_compared_before_the_tests_time_is_over(text):
    text *= 200_000 // len(text)
    match_conclusion(text, "B", text)
    match_conclusion(text + "x", text, CHOICE)


SAID = [text for pair, _ in CASES for text in pair.split("|")] + [text for pair in CHOSEN for text in pair.split("|")]
SAID += ["45%", "0.45", "0.45%", "5 dogs", "B. 5 cm", "A. yes", "yes, big", "Yes, it is big", "A. yes, big", "(C) 1000"]
QUESTIONS = [
    "",
    CHOICE,
    "Which? A. red B. blue",
    "A. yes B. yes, big C. no",
    "A. 5 cm B. 1,000 C. 45%",
    "A. yes B. yes",
]


@pytest.mark.fault("D2")
@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_of_one_vote_are_both_right_or_both_wrong(question):
    texts = list(dict.fromkeys(SAID))
    votes = {}
    for text in texts:
        votes.setdefault(conclusion_key(text, question), []).append(text)
    assert len(votes) < len(texts) - 20
    for first, *others in votes.values():
        right = [bool(match_conclusion(first, truth, question)) for truth in texts] if others else []
        for other in others:
            assert match_conclusion(first, other, question)
            assert [bool(match_conclusion(other, truth, question)) for truth in texts] == right, (first, other)


ANY = st.lists(st.sampled_from([*SAID, *"AB yes no . ,".split(), "The answer is "]), min_size=1, max_size=3).map(
    " ".join
)


@pytest.mark.fault("D2")
@given(ANY, ANY, ANY, st.sampled_from(QUESTIONS))
@settings(deadline=None)
def test_any_answers_of_one_vote_are_both_right_or_both_wrong(one, other, truth, question):
    if conclusion_key(one, question) == conclusion_key(other, question):
        assert bool(match_conclusion(one, truth, question)) == bool(match_conclusion(other, truth, question))


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    "pair",
    ["1,000|1000", "The answer is B|B", "B|(b).", "A red\n circle.|a  Red circle", "5 cm|5.0 cm", "Yes, it is|yes"],
)
def test_one_vote(pair):
    one, other = pair.split("|")
    assert conclusion_key(one, "") == conclusion_key(other, "")


@pytest.mark.fault("D2")
def test_votes_of_a_choice():
    keys = {conclusion_key(text, CHOICE) for text in ("A", "red", "(a)", "A. red", "The answer is A: red.", "Red!")}
    assert len(keys) == 1
    assert len({conclusion_key(text, CHOICE) for text in ("A", "B", "-3", "3", "no", "...", "!")}) == 7
