"""Conversations in LLaVA's format: constants, special tokens that a text can spell, and markers of other formats."""

import re

ROLES = ("human", "gpt")
"""Who speaks, by turns."""
PLACEHOLDER = "<image>"
"""The image's place in a turn; the model takes the image before the text, so it is removed."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")
"""Texts that GPT-NeoX's tokenizer reads as one token each, the first as the end of an answer."""

_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
_BLANKS = " \t"
# Ordinary text to the tokenizer. The names of speakers count where they begin a line.
_OTHER = re.compile(
    r"</?s>|<\|(?!endoftext\|>|padding\|>)\w+\|>|\[/?INST\]|<(?:start|end)_of_turn>"
    r"|^(?:USER|ASSISTANT|### ?(?:Human|Assistant|Instruction|Response)):",
    re.MULTILINE,
)
# One of them stands in every match: to look for these takes a fiftieth of the time of the search.
_SIGNS = ("|", "[", ":", "_", "s>")


def without_placeholder(text: str) -> str:
    """Return a turn's text without the image's placeholder, and without white space around it.

    Where a special token would come together from what stood around a placeholder, a space takes its place.
    """
    parts = text.split(PLACEHOLDER)
    joined = "".join(parts)
    if len(_SPECIAL.findall(joined)) > len(_SPECIAL.findall(text)):
        joined = " ".join(parts)
    return joined.strip()


def without_special_tokens(text: str) -> str:
    """Return a text with a space for each special token and the blanks around it.

    A space, so that no new one comes together from what is left.
    """
    first, *others = _SPECIAL.split(text)
    if not others:
        return text
    between = [part.strip(_BLANKS) for part in others[:-1]]
    return " ".join([first.rstrip(_BLANKS), *between, others[-1].lstrip(_BLANKS)])


def has_special_tokens(text: str) -> bool:
    """Return True if the tokenizer would read a special token out of a text."""
    return "|" in text and any(map(text.__contains__, SPECIAL_TOKENS))


def has_other_markers(text: str) -> bool:
    """Return True if a text holds marks of turns of other chat formats, such as `<|im_end|>`, `</s>` or `[INST]`."""
    return any(map(text.__contains__, _SIGNS)) and _OTHER.search(text) is not None
