"""A conversation with a model about an image, which resumes from the state after its last answer."""

import copy
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.backbones.vision import PixelValues
from cobra.models.generation.generate import generate_ids, text_pieces
from cobra.models.generation.memory import state_bytes
from cobra.models.mamba import MambaState
from cobra.models.vlms import CobraVLM, GenerationOptions, SearchOptions
from cobra.models.vlms.generation_mixin import TextTooLongError
from cobra.util.conversation import without_special_tokens
from cobra.util.errors import UserError
from cobra.util.pictures import ImageLike


@dataclass
class Figures:
    """Cost of an answer; of one that is being written, so far."""

    state_bytes: int
    """Bytes of the state that holds image and conversation, whatever their length."""
    read: int = 0
    """Tokens of text read for this question; those read before are not read again."""
    written: int = 0
    """Tokens written: those of the answer, or in a search of all candidates."""
    branches: int = 1
    """Branches written at a time, in a search."""
    seconds: float = 0.0
    """Seconds of writing, after the question has been read."""

    def __str__(self) -> str:
        rate = self.written / self.seconds if self.seconds else 0.0
        where = f" in {self.branches:,} branches" if self.branches > 1 else ""
        return (
            f"{self.written:,} tokens written{where} in {self.seconds:.2f} s ({rate:,.1f} tokens/s), {self.read:,} of "
            f"text read; the state has {self.state_bytes:,} bytes, however long the conversation"
        )


@dataclass(frozen=True)
class Turn:
    """A question that is part of its conversation once it has been answered."""

    question: str
    """Its text."""
    builder: PromptBuilder = field(repr=False)
    """The conversation up to and including it."""
    ids: list[int]
    """Ids of all of that."""
    pixels: PixelValues | None = field(repr=False)
    """Pixels of the image, where it has not been read."""
    prefix: MambaState | None = field(repr=False)
    """State after the image and the first `read_ids` ids; None where nothing has been read."""
    read_ids: int
    """Number of ids that have been read for questions before."""
    keep_at: int
    """Number of ids up to the last end token, after which the state is kept for the next question."""


class Conversation:
    """Questions and answers about one image, or about none.

    The image is read once. Of the conversation the state after its last end token is kept: the tokenizer splits text
    there, so what was read up to that point would be read in the same way with whatever follows, and every question
    reads only what has been said since. Answers are those of reading everything again, up to rounding.

    Attributes:
        figures: Cost of the last answer.
        turns: Questions and answers that are remembered, in order.
        has_image: True where it is about an image.
    """

    def __init__(self, vlm: CobraVLM, image: ImageLike | None = None) -> None:
        """Start a conversation with a model in evaluation mode.

        Only the pixels that it takes are kept of the image, and only up to the first question, which reads them.

        Raises:
            UserError: The image cannot be read (see :func:`as_picture`), or is too thin for the model's image resize
                strategy.
        """
        self._vlm = vlm
        self._pixels = None if image is None else vlm.preprocess([image])
        self._builder = vlm.get_prompt_builder()
        # Tokens of text that were read after the image, up to an end token, and the state after them.
        self._past: tuple[list[int], MambaState | None] = [], None
        self._end = int(vlm.llm_backbone.tokenizer.eos_token_id)
        self.figures = Figures(state_bytes(vlm.llm_backbone.llm.config))
        self.turns: list[tuple[str, str]] = []
        self.has_image = image is not None

    @property
    def text(self) -> str:
        """The conversation so far, as a prompt."""
        return self._builder.get_prompt()

    def ask(
        self,
        question: str,
        options: GenerationOptions | SearchOptions = GenerationOptions(),  # noqa: B008
        seed: int = 0,
        between_steps: Callable[[], None] = lambda: None,
    ) -> Generator[str, None, None]:
        """Ask, and yield the answer piece by piece as it is written or, in a search, decided.

        From its end on the answer is part of the conversation. Whoever stops earlier, by an exception or by closing
        the iterator, ends it there. An answer without a character is forgotten then, and its question with it.

        Args:
            question: Any text; special tokens of the tokenizer are taken out of it.
            options: See :class:`GenerationOptions` and :class:`SearchOptions`.
            seed: Seed of sampling.
            between_steps: Called before every token, also where no piece of the answer comes of it; what it raises
                ends the answer.

        Raises:
            UserError: Conversation and question are longer than the model's longest text; or as the search.
        """
        turn = self.begin(question)
        branches = options.width if isinstance(options, SearchOptions) else 1
        self.figures = Figures(self.figures.state_bytes, branches=branches)

        def write(state: MambaState, scores: Tensor) -> Iterator[str]:
            if isinstance(options, SearchOptions):
                search = self._vlm.new_search(options, between_steps=between_steps)
                for piece in search.decided(state, scores, str(seed), question):
                    [self.figures.written] = search.tokens_spent
                    yield piece
                return
            seeded = replace(options, generator=None, seeds=[seed])
            yield from text_pieces(self._tokens(state, scores, turn.ids, seeded, between_steps), self._vlm.decode)

        return self._answer(turn, write)

    def begin(self, question: str) -> "Turn":
        """Return a question's turn, for who reads it and writes its answer himself, and then calls :meth:`end`.

        Raises:
            UserError: Conversation and question are longer than the model's longest text.
        """
        builder = copy.deepcopy(self._builder)
        # Halves of surrogate pairs, left of bytes that were no UTF-8, have no tokens; an end token would end the turn.
        builder.add_turn("human", without_special_tokens(question.encode("utf-8", "replace").decode("utf-8")))
        ids = self._tokenize(builder.get_prompt())
        last_end = max((index for index, token in enumerate(ids[:-1]) if token == self._end), default=-1)
        known, state = self._past
        return Turn(question, builder, ids, self._pixels, state, len(known), max(last_end + 1, len(known)))

    def end(self, turn: "Turn", answer: str, past: MambaState | None, whole: bool) -> None:
        """Make an answer part of the conversation.

        Args:
            turn: Its question's, the last that was begun.
            answer: Its text as far as it was written; without a character of it the question is forgotten, unless the
                answer is whole.
            past: State after the first `keep_at` ids of the turn; None where they have not been read.
            whole: True where the answer has come to its end.
        """
        if past is None or not (whole or answer.strip()):
            return
        turn.builder.add_turn("gpt", answer)
        # Together: of a question that is forgotten the state must not remember anything.
        self._builder, self._past, self._pixels = turn.builder, (turn.ids[: turn.keep_at], past), None
        self.turns.append((turn.question, answer))

    def _answer(self, turn: "Turn", write: Callable[[MambaState, Tensor], Iterator[str]]) -> Generator[str, None, None]:
        answer, whole, past = "", False, None
        try:
            past, state, scores = self._read(turn)
            pieces = write(state, scores)
            began = time.perf_counter()
            for piece in pieces:
                self.figures.seconds = time.perf_counter() - began
                answer += piece
                if piece:
                    yield piece
            self.figures.seconds = time.perf_counter() - began
            whole = True
        finally:
            self.end(turn, answer, past, whole)

    def _tokenize(self, prompt: str) -> list[int]:
        """Return all ids of a prompt; raise a UserError where they are more than the model's longest text has."""
        try:
            return self._vlm.tokenize(prompt)
        except TextTooLongError as error:
            what, remedy = "the question has", "ask a shorter one"
            if self._builder.turn_count:
                what, remedy = "conversation and question have", f"{remedy}, or begin anew"
            most = self._vlm.max_text_length
            raise UserError(f"{what} {error.size}, and the model reads {most:,} at most: {remedy}") from error

    def _read(self, turn: "Turn") -> tuple[MambaState, MambaState, Tensor]:
        """Read what is new in a prompt; return the past to be kept, the state, and the next scores (1, vocabulary)."""
        if self._pixels is not None:
            # Once: also for a question that is then forgotten.
            self._past, self._pixels = ([], self._vlm.read_images(self._pixels)), None
        past, unread = self._past[1], turn.ids[turn.read_ids : turn.keep_at]
        if unread:
            past, _ = self._vlm.prefill(None, [unread], past)
        self.figures.read = len(turn.ids) - turn.read_ids
        state, scores = self._vlm.prefill(None, [turn.ids[turn.keep_at :]], past)
        return past or MambaState.zeros(self._vlm.llm_backbone.llm.config, 1, self._vlm.device), state, scores

    def _tokens(
        self,
        state: MambaState,
        scores: Tensor,
        ids: list[int],
        options: GenerationOptions,
        between_steps: Callable[[], None],
    ) -> Iterator[int]:
        between_steps()
        for [(_, token)] in generate_ids(self._vlm.llm_backbone.llm, state, scores, [ids], options, self._end):
            self.figures.written += 1
            yield token
            between_steps()
