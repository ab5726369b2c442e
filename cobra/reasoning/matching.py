"""Whether a conclusion says the same as the right one: the same words, option, number, or yes and no.

LLaVA-CoT's CONCLUSION is the exact answer, for a choice its letter; models word it more freely. What counts as the same
is decided by rules alone, without a tolerance for numbers: a value that is nearly right is wrong.
"""

import re
import unicodedata
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from cobra.reasoning.quantities import Quantity, parse_quantity, same_quantity


class Match(StrEnum):
    """The rule by which two conclusions are the same; the first in this order that holds."""

    EXACT = "exact"
    """The same words, but for case, white space, quotes, an article in front and punctuation at the end."""
    LETTER = "option letter"
    """The same option of a choice, by its letter or its words: `B`, `(B)`, `B. red`, `The answer is B`."""
    NUMBER = "number"
    """The same number: `1,000`, `1000` and `1e3`; see :func:`cobra.reasoning.quantities.same_quantity`."""
    VERDICT = "yes or no"
    """The same yes or no (true or false), whatever is said after it."""


@dataclass(frozen=True)
class _Reading:
    """What a conclusion may mean."""

    words: str
    letter: str | None
    """Of an option, upper case."""
    option: str
    """What is said behind the letter, or the question lists for it; empty where there is neither."""
    quantity: Quantity | None
    verdict: str | None


# What stands in front of an answer; the rest is read as if it stood alone. Possessive, so that hostile text costs
# linear time.
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence)\b,?+\s++)?+(?:(?:the|my)\s++)?+(?:(?:final|correct|right|best)\s++)?+"
    r"(?:answer|option|choice|conclusion|result)\s*+(?:is\b|would\s++be\b|should\s++be\b|:|=)\s*+:?+\s*+"
    r"(?=\S)|(?:option|choice|answer)\s++(?=[(\[]?[a-z][)\]]?(?:$|[.:)\s]))|[a-z]\s*+=\s*+(?=\S)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\boxed\{(.*)\}|\\\((.*)\\\)", re.DOTALL)
_WRAPPERS = "\"'*_`$"
_STOPS = " .,;:!?"
_ARTICLE = re.compile(r"(?:the|an?) (?=\S\S)")
_CONJUNCTION = re.compile(r"\s(?:and|or)$")
# Layers of quotes and emphasis that are taken off.
_LAYERS = 4
_BARE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?")
_LETTER_AND_WORDS = re.compile(
    r"(?:[(\[]([A-Za-z])[)\]][.:]?\s*|([A-Z])(?:\)\s*|[.:]\s+|\s+-+\s+))(?!and\b|or\b|[&/,+])(\S.*)", re.DOTALL
)
# Another option's letter among the words: the answer names two.
_SECOND_LETTER = re.compile(r"[(\[][A-Za-z][)\]]|(?<!\S)[A-Z][.):](?:\s|$)|\b(?:and|or)\s+[A-Z]$")
_MARK = re.compile(r"(?:^|(?<=[\s,;]))(?:[(\[]([A-Za-z])[)\]][.:]?|([A-Z])[).:])\s*")
_VERDICT = re.compile(r"(yes|no|true|false)(?:$|[,;:!]|\.(?!\s*\d)|\s+-)")
_CHARACTERS = {
    **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
    # Normal form KC would make 52 of the square of 5, and 11/2 of one and a half.
    **{
        character: f"^{unicodedata.digit(character)}"
        for character in "\u00b9\u00b2\u00b3\u2070\u2074\u2075\u2076\u2077\u2078\u2079"
    },
    **{
        character: f" {unicodedata.normalize('NFKC', character)}"
        for character in "\u00bc\u00bd\u00be\u2153\u2154\u215b\u215c\u215d\u215e"
    },
}
_TRANSLATION = str.maketrans(_CHARACTERS)


def match_conclusion(answer: str, truth: str, question: str = "") -> Match | None:
    """Compare an answer's conclusion with the right one; neither's order matters.

    Args:
        answer: One conclusion, without tags.
        truth: The other.
        question: What was asked: where it lists options (`A. red`, `(B) blue`), their words stand for their letters.

    Returns:
        The rule by which they are the same, or None.
    """
    options = options_of(question)
    one, other = _read(answer, options), _read(truth, options)
    if not one.words or not other.words:
        return Match.EXACT if answer.strip() == truth.strip() else None
    if one.words == other.words:
        return Match.EXACT
    if one.letter or other.letter:
        return Match.LETTER if _same_option(one, other, options) else None
    if one.quantity and other.quantity:
        return Match.NUMBER if same_quantity(one.quantity, other.quantity) else None
    return Match.VERDICT if one.verdict and one.verdict == other.verdict else None


def conclusion_key(text: str, question: str = "") -> Hashable:
    """Return what is equal for two conclusions only if no right answer tells them apart by :func:`match_conclusion`.

    That comparison is no equivalence: `45 %` is `45` and `0.45`, which are not the same. So votes are counted by this
    key. It may still differ between two answers that most right answers take for the same, as `5` and `5 cm`.

    Args:
        text: A conclusion, without tags.
        question: As of :func:`match_conclusion`.
    """
    options = options_of(question)
    reading = _read(text, options)
    if not reading.words:
        return "text", text.strip()
    if reading.letter:
        return "letter", reading.letter, reading.option
    if reading.quantity:
        return "number", reading.quantity
    if reading.verdict:
        # A listed option may begin with yes or no and say more.
        return "verdict", reading.verdict, reading.words if reading.words in options.values() else ""
    return "words", reading.words


def options_of(question: str) -> dict[str, str]:
    """Return the options that a question lists, by their upper-case letters from A on; empty where it lists none."""
    text = _uniform(question)
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        letter = (mark[1] or mark[2]).upper()
        if letter == "A":
            marks = [mark]
        elif marks and ord(letter) == ord("A") + len(marks):
            marks.append(mark)
    if len(marks) < 2:
        return {}
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    # Behind the last option an instruction may follow, on a line of its own.
    texts = [text[mark.end() : end].strip().partition("\n")[0] for mark, end in zip(marks, ends, strict=True)]
    return {chr(ord("A") + place): _CONJUNCTION.sub("", _words(_peeled(text))) for place, text in enumerate(texts)}


def _read(text: str, options: dict[str, str]) -> _Reading:
    text = _peeled(" ".join(_uniform(text).split()))
    lead_in = _LEAD_IN.match(text)
    if lead_in:
        text = _peeled(text[lead_in.end() :])
    words, quantity = _words(text), parse_quantity(text)
    found = _VERDICT.match(words)
    verdict = found[1] if found else None
    letter, option = _option(text)
    if letter is None:
        same = [key for key, own in options.items() if own in (words, verdict) or _same_number(quantity, own)]
        letter = same[0] if len(same) == 1 else None
    if letter is not None and not option:
        option = options.get(letter, "")
    return _Reading(words, letter, option, quantity, verdict)


def _uniform(text: str) -> str:
    """Return a text with one form of every letter, quote, dash, fraction and power."""
    return unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).replace("\u2044", "/")


def _peeled(text: str) -> str:
    """Return a text without the punctuation at its end, and without quotes and marks of emphasis around it."""
    for _ in range(_LAYERS):
        text = text.rstrip(_STOPS).lstrip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in _WRAPPERS:
            text = text[1:-1]
        elif wrapped := _WRAPPED.fullmatch(text):
            text = wrapped[1] if wrapped[1] is not None else wrapped[2]
    return text.rstrip(_STOPS).lstrip()


def _words(text: str) -> str:
    folded = " ".join(text.casefold().split())
    return _ARTICLE.sub("", folded, count=1) if _ARTICLE.match(folded) else folded


def _option(text: str) -> tuple[str | None, str]:
    """Return the letter that a text chooses and the words behind it."""
    bare = _BARE_LETTER.fullmatch(text)
    if bare:
        return bare[1].upper(), ""
    found = _LETTER_AND_WORDS.fullmatch(text)
    if found is None or _SECOND_LETTER.search(found[3]):
        return None, ""
    return (found[1] or found[2]).upper(), _words(_peeled(found[3]))


def _same_number(quantity: Quantity | None, option: str) -> bool:
    other = parse_quantity(option) if quantity else None
    return quantity is not None and other is not None and same_quantity(quantity, other)


def _same_option(one: _Reading, other: _Reading, options: dict[str, str]) -> bool:
    """Return whether two readings, of which at least one has a letter, are of one option."""
    if one.letter and other.letter:
        if one.letter != other.letter:
            return False
        # An initial is no option: `J. Smith` is not `J. Brown`.
        return not one.option or not other.option or one.option == other.option or one.letter in options
    lettered, plain = (one, other) if one.letter else (other, one)
    option = lettered.option
    if not option:
        return False
    if plain.verdict and options.get(lettered.letter or "") != option:
        verdict = _VERDICT.match(option)
        return verdict is not None and verdict[1] == plain.verdict
    return option in (plain.words, plain.verdict) or _same_number(plain.quantity, option)
