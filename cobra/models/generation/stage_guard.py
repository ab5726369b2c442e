"""Constrained decoding of the four stages: tags come in order, and every stage is filled, closed and bounded.

The form is that of :mod:`cobra.reasoning.trace`. Its tags are ordinary text of several tokens, so the guard works on
the text: it writes opening tags itself, refuses a token that begins a tag which is not due, and writes the closing tag
when a stage has used up its tokens. Nothing else is changed: within a stage the model chooses among all other tokens.
"""

import copy
import re
from collections.abc import Callable, Sequence

from cobra.reasoning.trace import PARTIAL_TAG, STAGE_BREAK, STAGE_TAGS, find_unfinished_tag, last_closed_stage
from cobra.util.errors import UserError

# Letters from which on a `<` is taken for a tag: `a <C` and `<AB` are mathematics.
_LETTERS = 3
# Parts of an answer's text, of which every stage leaves one to each of the later ones.
_SHARES = 8
# Tokens refused at one place after which the stage is closed: the model wants nothing but another tag.
_MAX_REFUSED = 32


class TokenTexts(dict[int, str]):
    """The text of each token by itself, decoded when first asked for; special tokens have none.

    Tags are ASCII, and a tokenizer of bytes shows those of a token by itself as it does among others; parts of other
    characters show as U+FFFD.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._decode, self.encode = decode, encode

    def __missing__(self, token: int) -> str:
        text = self[token] = self._decode([token])
        return text


class StageGuard:
    """The constraint on one answer, from its first token on; a copy is a branch.

    Attributes:
        stage: Index of the stage that is being written; the number of stages when all are closed.
        forced: Tokens that come next, whatever the model scores highest.
        refused: Tokens refused at this position.
    """

    def __init__(self, texts: TokenTexts, max_tokens: int, stage_tokens: int) -> None:
        """Start before the first opening tag.

        Args:
            texts: The tokens' texts.
            max_tokens: Tokens of the whole answer, tags included; every stage leaves an eighth of those for text to
                each later one.
            stage_tokens: Tokens of the text of one stage.

        Raises:
            UserError: There is no room for four stages of a token each.
        """
        self._texts = texts
        self._opening = [texts.encode(f"{STAGE_BREAK if index else ''}<{tag}>") for index, tag in enumerate(STAGE_TAGS)]
        self._closing = [texts.encode(f" </{tag}>") for tag in STAGE_TAGS]
        # Tokens of a stage's tags; the rest of a closing tag that was begun may take more of them than all of it.
        rests = [[f" </{tag}>"[begun:] for begun in range(len(tag) + 4)] for tag in STAGE_TAGS]
        closing = [max(len(texts.encode(rest)) for rest in each) for each in rests]
        self._tags = [len(tokens) + most for tokens, most in zip(self._opening, closing, strict=True)]
        least = sum(self._tags) + len(STAGE_TAGS)
        if max_tokens < least or stage_tokens < 1:
            raise UserError(
                f"{max_tokens} new tokens, {stage_tokens} a stage, leave no room for the four stages: their tags "
                f"and a token of each take {least}; allow at least that many, and a token a stage"
            )
        self._left = max_tokens
        self._share = max(1, (max_tokens - sum(self._tags)) // _SHARES)
        self._stage_tokens = stage_tokens
        self.stage = 0
        self.forced: list[int] = []
        self.refused = 0
        # The stage's text, its tokens, their limit, and the tokens left of its opening tag.
        self._body = ""
        self._spent = self._limit = self._unopened = 0
        self._open(0)

    @property
    def ended(self) -> bool:
        """True if all stages are closed."""
        return self.stage == len(STAGE_TAGS)

    def copy(self) -> "StageGuard":
        """Return an independent guard at the same position."""
        branch = copy.copy(self)
        branch.forced = list(self.forced)
        return branch

    def take_forced(self) -> list[int]:
        """Advance past the forced tokens, and return them."""
        taken = self.forced
        for token in taken:
            self.advance(token)
        return taken

    def admits(self, token: int) -> bool:
        """Return True if a token may come next; else it counts as refused, and after many the closing tag is forced."""
        if self.forced:
            return token == self.forced[0]
        if self._fits(self._texts[token]):
            return True
        self.refused += 1
        if self.refused >= _MAX_REFUSED:
            self.forced = self._rest_of_closing()
        return False

    def advance(self, token: int) -> None:
        """Advance past a token."""
        self.refused = 0
        self._left -= 1
        if self.forced:
            self.forced = self.forced[1:]
        if self._unopened:
            self._unopened -= 1
            return
        self._body += self._texts[token]
        self._spent += 1
        if last_closed_stage(self._body) == STAGE_TAGS[self.stage]:
            self.stage += 1
            self._open(self.stage)
        elif not self.forced and self._spent >= self._limit:
            self.forced = self._rest_of_closing()

    def _open(self, stage: int) -> None:
        """Go to the start of a stage, or to the end."""
        self._body, self._spent, self.refused = "", 0, 0
        self.forced = [] if stage == len(STAGE_TAGS) else list(self._opening[stage])
        self._unopened = len(self.forced)
        needed = sum(self._tags[stage:]) + self._share * len(self._tags[stage + 1 :])
        self._limit = min(self._stage_tokens, self._left - needed)

    def _fits(self, piece: str) -> bool:
        """Return True if a piece of text may follow."""
        if not piece:
            return False
        body = self._body + piece
        if not body.strip() and self._spent + 1 >= self._limit:
            return False
        # A tag holds no `<`: what began before the last one is decided.
        return all(self._tag_fits(body, tag) for tag in PARTIAL_TAG.finditer(body, max(self._body.rfind("<"), 0)))

    def _tag_fits(self, body: str, tag: re.Match[str]) -> bool:
        """Return True if a tag, whole or begun, may stand in this stage."""
        due, filled = STAGE_TAGS[self.stage], bool(body[: tag.start()].strip())
        if tag["slash"] and not filled and (not tag["name"] or due.startswith(tag["name"])):
            return False
        unfinished = not tag["end"] and tag.end() == len(body)
        alike = [name for name in STAGE_TAGS if name == tag["name"] or (unfinished and name.startswith(tag["name"]))]
        # Without an end, and with more text, no tag: something else follows the letters.
        if not (tag["end"] or unfinished) or len(tag["name"]) < _LETTERS or not alike:
            return True
        return alike == [due] and bool(tag["slash"]) and (unfinished or not body[tag.end() :].strip())

    def _rest_of_closing(self) -> list[int]:
        """Return the tokens that close the stage, going on from a closing tag that has been begun."""
        tag = f"</{STAGE_TAGS[self.stage]}>"
        begun = find_unfinished_tag(self._body)
        written = "".join(begun[0].split()) if begun and self._body[: begun.start()].strip() else ""
        if written and tag.startswith(written):
            return self._texts.encode(tag[len(written) :])
        return list(self._closing[self.stage])
