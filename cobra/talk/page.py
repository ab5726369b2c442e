"""A page to talk to a model on: pictures are uploaded, answers come stage by stage, one at a time.

Everything is served from here: the page asks nothing of any other server. Its parts of an answer are lines of JSON.
"""

import asyncio
import base64
import json
import secrets
import threading
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from cobra.models.generation.options import KINDS
from cobra.models.vlms import CobraVLM
from cobra.reasoning.trace import Part, StageReader
from cobra.talk.access import HEADERS, Access, Guard
from cobra.talk.conversation import Conversation
from cobra.talk.options import TalkFlags
from cobra.talk.uploads import Uploads, read_body
from cobra.util.errors import UserError
from cobra.util.html_pages import page_templates
from cobra.util.numbers import counted
from cobra.util.printable import printable

MAX_BEAMS = 64
# Conversations that are remembered; the one unused for longest is forgotten first. Each holds a state, or before its
# first question the pixels that the model takes of its picture.
_MAX_CONVERSATIONS = 64
_MAX_KEPT_BYTES = 1 << 30
_MAX_QUESTION_BYTES = 1 << 18
_MAX_KEY_BYTES = 256
# Of a picture for two towers, 3 x 384 x 384 each in fp32.
_PIXEL_BYTES = 3_538_944
_MAX_WAITING = 64
_MAX_CONNECTIONS = 256

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class _ReaderGoneError(Exception):
    """Nobody reads the answer that is being written."""


@dataclass(frozen=True)
class Question:
    """A question from the page: text, the conversation's id or None for a new one without an image, and the search."""

    text: str
    conversation: str | None
    search: str
    beams: int

    @classmethod
    def from_json(cls, body: bytes) -> "Question":
        """Read a question; raise a UserError where it is not of the form."""
        try:
            fields = json.loads(body)
            question = cls(fields["question"], fields["conversation"], fields["search"], fields["beams"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"the question is not of the page's form ({error!r}): load the page again") from error
        texts = (question.text, question.search, question.conversation or "")
        if not all(isinstance(text, str) for text in texts) or type(question.beams) is not int:
            raise UserError("the question is not of the page's form: load the page again")
        if not 1 <= question.beams <= MAX_BEAMS:
            raise UserError(f"a search of {question.beams} is asked for: choose 1 to {MAX_BEAMS}")
        return question


@dataclass(frozen=True)
class Welcome:
    """First sight of the page."""

    knowledge: str = ""
    """Sentence on what the model can be asked about."""
    examples: Sequence[tuple[str, bytes]] = ()
    """Captions and PNG files of pictures to click."""


class TalkServer:
    """Conversations with one model, which writes one answer at a time; who asks meanwhile waits in line."""

    def __init__(
        self, vlm: CobraVLM, flags: TalkFlags, name: str, access: Access | None = None, welcome: Welcome | None = None
    ) -> None:
        """Serve a model in evaluation mode under a name; a question chooses its own search.

        Without `access` the requests of this machine are allowed.
        """
        self._access = access or Access()
        self._vlm = vlm
        self._flags = flags
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        # All of the model's work is done in one thread: torch keeps its helpers for each thread that calls it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._turn = asyncio.Lock()
        self._uploads = Uploads()
        self._asking = 0
        welcome = welcome or Welcome()
        templates = page_templates("cobra.talk")
        page = templates.get_template("talk.html.j2").render(
            name=name,
            knowledge=welcome.knowledge,
            examples=[(caption, base64.b64encode(png).decode()) for caption, png in welcome.examples],
            kinds=KINDS,
            search=flags.search,
            beams=flags.beams,
            max_beams=MAX_BEAMS,
        )
        style = "\n".join(templates.get_template(file).render() for file in ("page.css", "talk.css"))
        script = templates.get_template("talk.js").render()
        self._files = {
            "/": (page, "text/html"),
            "/talk.css": (style, "text/css"),
            "/talk.js": (script, "text/javascript"),
        }

    def app(self) -> ASGIApp:
        """Return the application."""
        routes = [Route(path, self._file) for path in self._files]
        posts = {"/image": self._take_image, "/ask": self._take_question, "/talk": self._find_talk}
        routes += [Route(path, _in_words(handle), methods=["POST"]) for path, handle in posts.items()]
        app = Starlette(routes=routes)
        # It would build an address of what the request says.
        app.router.redirect_slashes = False
        return Guard(app, self._access)

    async def _file(self, request: Request) -> Response:
        text, kind = self._files[request.scope["path"]]
        return Response(text, media_type=kind, headers=HEADERS)

    async def _take_image(self, request: Request) -> Response:
        """Begin a conversation about the picture that is the request's body."""
        # Not by the model's worker: who uploads need not wait for an answer.
        talk = await self._uploads.receive(request, lambda image: Conversation(self._vlm, image))
        return JSONResponse({"conversation": self._begin(talk)}, headers=HEADERS)

    async def _find_talk(self, request: Request) -> Response:
        """Return what is remembered of the conversation whose id is the request's body, for a page loaded again."""
        key = (await read_body(request, _MAX_KEY_BYTES, "the conversation's id")).decode("utf-8", "replace")
        talk = self._conversations.get(key)
        if talk is None:
            return JSONResponse({"turns": None}, headers=HEADERS)
        # Behind the end of an answer that its reader has left by loading the page again.
        turns = await asyncio.get_running_loop().run_in_executor(self._worker, lambda: list(talk.turns))
        told = [{"question": printable(question), "parts": _parts_of(answer)} for question, answer in turns]
        return JSONResponse({"turns": told, "picture": talk.has_image}, headers=HEADERS)

    def _begin(self, conversation: Conversation) -> str:
        key = secrets.token_urlsafe(16)
        self._conversations[key] = conversation
        fit = max(_MAX_KEPT_BYTES // max(conversation.figures.state_bytes, _PIXEL_BYTES), 1)
        while len(self._conversations) > min(fit, _MAX_CONVERSATIONS):
            self._conversations.popitem(last=False)
        return key

    async def _take_question(self, request: Request) -> Response:
        """Answer a question with lines of JSON; see :meth:`_lines`."""
        if self._asking > _MAX_WAITING:
            raise UserError(f"{counted(self._asking, 'question')} in front of this one already: ask again later")
        question = Question.from_json(await read_body(request, _MAX_QUESTION_BYTES, "the question"))
        replace(self._flags, beams=question.beams).options(question.search)
        key = question.conversation or self._begin(Conversation(self._vlm))
        if key not in self._conversations:
            raise UserError("this conversation has been forgotten, others came after it: begin a new one")
        self._conversations.move_to_end(key)
        lines = self._lines(key, self._conversations[key], question)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=HEADERS)

    async def _lines(self, key: str, talk: Conversation, question: Question) -> AsyncIterator[str]:
        """Yield what there is to tell: the conversation's id, who is before it in line, parts, and figures at the end.

        When the reader goes, this is cancelled, and the answer or search ends with the model's step.
        """
        gone, waiting, loop = threading.Event(), self._asking, asyncio.get_running_loop()

        def stop_if_gone() -> None:
            if gone.is_set():
                raise _ReaderGoneError

        self._asking += 1
        try:
            yield _line(conversation=key, waiting=waiting)
            async with self._turn:
                parts = self._parts(talk, question, stop_if_gone)
                try:
                    while (part := await loop.run_in_executor(self._worker, lambda: next(parts, None))) is not None:
                        yield part
                finally:
                    gone.set()
                    # Put in line behind a step that may still be running, so it is not closed while it runs.
                    self._worker.submit(parts.close)
        finally:
            self._asking -= 1

    def _parts(
        self, talk: Conversation, question: Question, between_steps: Callable[[], None]
    ) -> Generator[str, None, None]:
        """Write an answer; yield its lines."""
        options = replace(self._flags, beams=question.beams).options(question.search)
        reader = StageReader()
        try:
            with closing(talk.ask(question.text, options, self._flags.seed, between_steps)) as pieces:
                for piece in pieces:
                    yield from map(_part_line, reader.feed(piece))
            yield from map(_part_line, reader.finish())
            yield _line(figures=asdict(talk.figures))
        except _ReaderGoneError:
            return
        except UserError as error:
            yield _line(error=printable(str(error)))
        except Exception as error:
            # The page says that it went wrong, the terminal where.
            traceback.print_exc()
            yield _line(error=printable(f"the answer broke off ({type(error).__name__}: {error})"))


def _line(**entries: Any) -> str:
    return json.dumps(entries) + "\n"


def _part_line(part: Part) -> str:
    return _line(**_entries(part))


def _entries(part: Part) -> dict[str, Any]:
    return {"block": part.block, "stage": part.stage, "text": printable(part.text)}


def _parts_of(answer: str) -> list[dict[str, Any]]:
    reader = StageReader()
    return [_entries(part) for part in (*reader.feed(answer), *reader.finish())]


def _in_words(handle: Handler) -> Handler:
    """Return a handler that tells errors in words, and nothing to whoever has gone."""

    async def handler(request: Request) -> Response:
        try:
            return await handle(request)
        except UserError as error:
            return JSONResponse({"error": printable(str(error))}, 400, HEADERS)
        except ClientDisconnect:
            return Response(status_code=400)

    return handler


def web_server(app: ASGIApp) -> uvicorn.Server:
    """Return the server for a page's application; what strangers send wrong is not written to the terminal."""
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_level": "error"}
    limits: dict[str, Any] = {"limit_concurrency": _MAX_CONNECTIONS, "timeout_graceful_shutdown": 1}
    return uvicorn.Server(uvicorn.Config(app, server_header=False, **options, **limits))
