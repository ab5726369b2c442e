"""Requests to the engine, and the answers that it writes for them; both may be looked at from any thread."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from cobra.models.backbones.vision import PixelValues
from cobra.models.generation.generate import TextPieces
from cobra.models.generation.options import GenerationOptions
from cobra.models.mamba import MambaState


class BusyError(Exception):
    """As many requests wait as may.

    Attributes:
        seconds: Time after which another try may succeed, in whole seconds.
    """

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting:,} requests wait already: try again in {seconds} s")
        self.seconds = seconds


class CancelledError(Exception):
    """Nobody wants the answer that is being written."""


@dataclass(frozen=True)
class Prompt:
    """Text, and what comes before it."""

    ids: Sequence[int]
    """Ids of the whole text, for limits and the repetition penalty."""
    pixels: PixelValues | None = None
    """Pixels of one image, which precedes the text."""
    prefix: MambaState | None = None
    """State of one row that has read everything before `unread`; it stays as it is."""
    read_ids: int = 0
    """Number of the ids that the prefix has read already."""
    keep_at: int | None = None
    """Number of ids after which the state is kept, in :attr:`Job.kept`."""


class StopTexts:
    """Texts that end an answer: none of them, and nothing after it, is passed on."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Return the text that can be passed on after one more piece, and True where a stop has come."""
        held = self._held + piece
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self._held = ""
            return held[: min(places)], True
        cut = min((self._begun(held, stop) for stop in self._stops), default=len(held))
        self._held = held[cut:]
        return held[:cut], False

    def finish(self) -> str:
        """Return what has been held back."""
        return self._held

    @staticmethod
    def _begun(held: str, stop: str) -> int:
        """Return where the text ends in a beginning of the stop, or its length."""
        place = held.find(stop[0], max(len(held) - len(stop) + 1, 0))
        while place >= 0 and not stop.startswith(held[place:]):
            place = held.find(stop[0], place + 1)
        return len(held) if place < 0 else place


class Answer:
    """One answer of a request.

    Attributes:
        written: Tokens so far, the end token included.
        finish_reason: `stop` after the end token or a stop text, `length` where the tokens are used up; None before.
    """

    def __init__(self) -> None:
        self.written = 0
        self.finish_reason: str | None = None
        self._pieces: deque[str] = deque()
        self._all: list[str] = []

    @property
    def text(self) -> str:
        """All of its text so far."""
        return "".join(self._all)

    def push(self, piece: str) -> None:
        """Add a piece of text; of the engine's thread."""
        if piece:
            self._pieces.append(piece)
            self._all.append(piece)

    def drain(self) -> str:
        """Return, once, the text that has come since."""
        pieces = []
        while self._pieces:
            pieces.append(self._pieces.popleft())
        return "".join(pieces)


class Row(Answer):
    """An answer in the running batch: its limits, its own random numbers, and its text."""

    def __init__(self, job: "Job", number: int) -> None:
        super().__init__()
        self.job = job
        self.left = 0
        self._end = -1
        self.stream: random.Random | None = None
        self.seen: Tensor | None = None
        if job.options.do_sample:
            # As `generate` does with this seed.
            self.stream = random.Random(str(job.seed + number))
        self._stops = StopTexts(job.stops) if job.stops else None
        self._text: TextPieces | None = None

    def begin(self, prompt_length: int, end_token_id: int, decode: Callable[[Sequence[int]], str]) -> None:
        """Join the batch, after a prompt of so many ids; a token of that id ends the answer."""
        self.left = self.job.options.budget(prompt_length)
        self._end = end_token_id
        self._text = TextPieces(decode)

    def add(self, token: int) -> bool:
        """Add a token; return True where the answer ends with it."""
        assert self._text is not None
        self.written += 1
        self.left -= 1
        piece, stopped = self._text.push(token), False
        if self._stops is not None:
            piece, stopped = self._stops.feed(piece)
        self.push(piece)
        if stopped or token == self._end or self.left <= 0:
            if not stopped:
                stopped = self._push_rest(self._text.finish())
            self.finish_reason = "stop" if stopped or token == self._end else "length"
            return True
        return False

    def _push_rest(self, rest: str) -> bool:
        """Push what was held back; return True where a stop text comes with it."""
        if self._stops is None:
            self.push(rest)
            return False
        piece, stopped = self._stops.feed(rest)
        self.push(piece if stopped else piece + self._stops.finish())
        return stopped


@dataclass(eq=False)
class Work:
    """A request to the engine, with its answers.

    Attributes:
        answers: Its answers, in order.
        error: Reason of an early end.
        ended: True once nothing more will come.
    """

    on_end: Callable[[], None] = field(default=lambda: None, kw_only=True)
    """Called in the engine's thread once, when it has ended or been cancelled."""
    wake: Callable[[], None] = field(default=lambda: None, kw_only=True)
    """Called in the engine's thread when there is news; must not wait."""
    answers: Sequence[Answer] = field(default=(), init=False)
    error: Exception | None = field(default=None, init=False)
    ended: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    began: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    """Seconds of writing, after the prompt has been read."""

    def end(self, error: Exception | None = None) -> None:
        """Note the end; of the engine's thread. An error of :attr:`on_end` becomes the reason where there is none."""
        if self.ended:
            return
        if self.began:
            self.seconds = time.perf_counter() - self.began
        self.error = error
        try:
            self.on_end()
        except Exception as raised:  # noqa: BLE001 - it is of this request alone
            self.error = error or raised
        finally:
            self.ended = True
            self.wake()


@dataclass(eq=False)
class Job(Work):
    """A prompt with one or several answers, which are written in the running batch."""

    make_prompt: Callable[[], Prompt]
    """Called in the engine's thread, once, when reading begins; a UserError that it raises ends the job."""
    options: GenerationOptions
    """How tokens are chosen; of one prompt, without seeds and stop texts."""
    seed: int = 0
    """Seed of the first answer; each further one takes the next number."""
    count: int = 1
    """Number of answers."""
    stops: Sequence[str] = ()
    """Texts that end an answer, left out of it."""
    kept: MambaState | None = field(default=None, init=False)
    """State after :attr:`Prompt.keep_at` ids, once they have been read."""

    def __post_init__(self) -> None:
        # What remains says how to choose; rows of equal options are chosen for together.
        self.choice = replace(self.options, max_new_tokens=None, max_length=None, eos_token_id=None)
        self.rows = [Row(self, number) for number in range(self.count)]
        self.answers = self.rows


@dataclass(eq=False)
class Solo(Work):
    """Work that the engine does by itself, such as a search, with steps of the running batch between its own."""

    pieces: Callable[[Callable[[], None]], Iterator[str]]
    """Called with a function to be called between steps; what that raises must be passed on."""

    def __post_init__(self) -> None:
        self.answers = [Answer()]
