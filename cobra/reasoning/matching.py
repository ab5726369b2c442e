"""The rule by which two conclusions are the same: the same words, option, number, or yes and no.

LLaVA-CoT's CONCLUSION is the exact answer, for a choice its letter; models word it more freely. Numbers have no
tolerance: a value that is nearly right is wrong.
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
    """The possible meanings of a conclusion."""

    words: str
    letter: str | None
    """Letter of an option, upper case."""
    option: str
    """Words behind the letter, or those that the question lists for it; empty where there are neither."""
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
        power: f"^{unicodedata.digit(power)}"
        for power in "\u00b9\u00b2\u00b3\u2070\u2074\u2075\u2076\u2077\u2078\u2079"
    },
    **{
        part: f" {unicodedata.normalize('NFKC', part)}"
        for part in "\u00bc\u00bd\u00be\u2153\u2154\u215b\u215c\u215d\u215e"
    },
}
_TRANSLATION = str.maketrans(_CHARACTERS)


def match_conclusion(answer: str | None, truth: str | None, question: str) -> Match | None:
    """Compare an answer's conclusion with the right one; their order does not matter.

    Args:
        answer: A conclusion, without tags; None matches nothing.
        truth: The other conclusion.
        question: Where it lists options (`A. red`, `(B) blue`), their words stand for their letters.
    """
    if answer is None or truth is None:
        return None
    options = options_of(question)
    first, second = _read(answer, options), _read(truth, options)
    if not first.words or not second.words:
        return Match.EXACT if answer.strip() == truth.strip() else None
    if first.words == second.words:
        return Match.EXACT
    if first.letter or second.letter:
        return Match.LETTER if _same_option(first, second, options) else None
    if first.quantity and second.quantity:
        return Match.NUMBER if same_quantity(first.quantity, second.quantity) else None
    return Match.VERDICT if first.verdict and first.verdict == second.verdict else None


def conclusion_key(text: str, question: str) -> Hashable:
    """Return the key by which votes are counted: equal keys match the same right answers by :func:`match_conclusion`.

    That comparison is no equivalence: `45 %` is `45` and `0.45`, which are not the same. Two answers that most right
    answers take for the same, as `5` and `5 cm`, may still have different keys. The text is without tags; an empty
    question gives the key of the words alone.
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
    text = _normalize(question)
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
    return {chr(ord("A") + index): _CONJUNCTION.sub("", _fold(_strip(text))) for index, text in enumerate(texts)}


def _read(text: str, options: dict[str, str]) -> _Reading:
    text = _strip(" ".join(_normalize(text).split()))
    if lead_in := _LEAD_IN.match(text):
        text = _strip(text[lead_in.end() :])
    words, quantity = _fold(text), parse_quantity(text)
    verdict = _verdict(words)
    letter, option = _lettered_option(text)
    if letter is None:
        same = [key for key, words_of_key in options.items() if _says(words_of_key, words, verdict, quantity)]
        letter = same[0] if len(same) == 1 else None
    if letter is not None and not option:
        option = options.get(letter, "")
    return _Reading(words, letter, option, quantity, verdict)


def _normalize(text: str) -> str:
    """Return a text with one form of each letter, quote, dash, fraction and power."""
    return unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).replace("\u2044", "/")


def _strip(text: str) -> str:
    """Return a text without the punctuation at its end, and without quotes and marks of emphasis around it."""
    for _ in range(_LAYERS):
        text = text.rstrip(_STOPS).lstrip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in _WRAPPERS:
            text = text[1:-1]
        elif wrapped := _WRAPPED.fullmatch(text):
            text = wrapped[1] if wrapped[1] is not None else wrapped[2]
    return text.rstrip(_STOPS).lstrip()


def _fold(text: str) -> str:
    """Return a text in lower case, with single spaces and without an article in front."""
    folded = " ".join(text.casefold().split())
    return _ARTICLE.sub("", folded, count=1) if _ARTICLE.match(folded) else folded


def _verdict(words: str) -> str | None:
    """Return the yes, no, true or false that words begin with."""
    return verdict[1] if (verdict := _VERDICT.match(words)) else None


def _lettered_option(text: str) -> tuple[str | None, str]:
    """Return the letter that a text chooses and the words behind it."""
    if bare := _BARE_LETTER.fullmatch(text):
        return bare[1].upper(), ""
    choice = _LETTER_AND_WORDS.fullmatch(text)
    if choice is None or _SECOND_LETTER.search(choice[3]):
        return None, ""
    return (choice[1] or choice[2]).upper(), _fold(_strip(choice[3]))


def _says(option: str, words: str, verdict: str | None, quantity: Quantity | None) -> bool:
    """Return True if an answer's words, verdict or quantity are those of an option."""
    number = parse_quantity(option) if quantity else None
    return option in (words, verdict) or bool(quantity and number and same_quantity(quantity, number))


def _same_option(first: _Reading, second: _Reading, options: dict[str, str]) -> bool:
    """Return True if two readings, of which at least one has a letter, choose the same option."""
    if first.letter and second.letter:
        if first.letter != second.letter:
            return False
        # An initial is no option: `J. Smith` is not `J. Brown`.
        return not first.option or not second.option or first.option == second.option or first.letter in options
    lettered, plain = (first, second) if first.letter else (second, first)
    option = lettered.option
    if option and plain.verdict and options.get(lettered.letter or "") != option:
        return _verdict(option) == plain.verdict
    return bool(option) and _says(option, plain.words, plain.verdict, plain.quantity)
