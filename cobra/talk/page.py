"""A page to talk to a model on: pictures are uploaded, answers come stage by stage.

Everything is served from here: the page asks nothing of any other server. Its parts of an answer are lines of JSON.
"""

import asyncio
import base64
import json
import logging
import secrets
import traceback
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from cobra.models.generation.options import KINDS
from cobra.models.vlms import CobraVLM, GenerationOptions, SearchOptions
from cobra.reasoning.trace import Part, StageReader
from cobra.serving.engine import MAX_ROWS, MAX_WAITING, Engine
from cobra.serving.jobs import BusyError, Solo, Work
from cobra.talk.access import Access, Guard
from cobra.talk.chat_api import ChatApi
from cobra.talk.conversation import Conversation
from cobra.talk.following import answer_job, follow
from cobra.talk.headers import HEADERS
from cobra.talk.options import TalkFlags
from cobra.talk.uploads import Uploads, read_body
from cobra.util.errors import UserError
from cobra.util.html_pages import page_templates
from cobra.util.numbers import counted
from cobra.util.open_files import allow_open_files
from cobra.util.printable import printable

logger = logging.getLogger(__name__)

MAX_BEAMS = 64
# Conversations that are remembered; the one unused for longest is forgotten first. Each holds a state, or before its
# first question the pixels that the model takes of its picture.
_MAX_CONVERSATIONS = 64
_MAX_KEPT_BYTES = 1 << 30
_MAX_QUESTION_BYTES = 1 << 18
_MAX_KEY_BYTES = 256
# Of a picture for two towers, 3 x 384 x 384 each in fp32.
_PIXEL_BYTES = 3_538_944
_MAX_SEARCHES = 64
# Beyond those of requests that are answered or wait: uploads, pages that stay open, and who is told to come again.
_SPARE_CONNECTIONS = 128
# Open files of this process that are no connections, such as libraries' and the terminal.
_OTHER_FILES = 64

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


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
    """Conversations with one model, whose answers are written together; searches take turns with each other."""

    def __init__(
        self,
        vlm: CobraVLM,
        flags: TalkFlags,
        name: str,
        access: Access | None = None,
        welcome: Welcome | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Serve a model in evaluation mode under a name; a question chooses its own search.

        Without `access` the requests of this machine are allowed. An engine that is given is the model's.
        """
        self._access = access or Access()
        self._vlm, self._flags, self._name = vlm, flags, name
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._engine = engine or Engine(vlm)
        # Of the conversations that are being answered: a question waits for the one before.
        self._turns: WeakKeyDictionary[Conversation, asyncio.Lock] = WeakKeyDictionary()
        self._uploads = Uploads()
        self._searching = 0
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
        routes += ChatApi(self._vlm, self._flags, self._name, self._engine, self._uploads).routes()
        app = Starlette(routes=routes)
        # It would build an address of what the request says.
        app.router.redirect_slashes = False
        return Guard(app, self._access)

    def close(self) -> None:
        """End all answers, and the engine."""
        self._engine.close()

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
        turns = await asyncio.wrap_future(self._engine.call(lambda: list(talk.turns)))
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
        question = Question.from_json(await read_body(request, _MAX_QUESTION_BYTES, "the question"))
        options = replace(self._flags, beams=question.beams).options(question.search)
        if isinstance(options, SearchOptions) and self._searching > _MAX_SEARCHES:
            raise UserError(
                f"{counted(self._searching, 'question')} in front of this one already: ask again later, or without a "
                "search"
            )
        key = question.conversation or self._begin(Conversation(self._vlm))
        if key not in self._conversations:
            raise UserError("this conversation has been forgotten, others came after it: begin a new one")
        self._conversations.move_to_end(key)
        lines = self._lines(key, self._conversations[key], question, options)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=HEADERS)

    async def _lines(
        self, key: str, talk: Conversation, question: Question, options: GenerationOptions | SearchOptions
    ) -> AsyncIterator[str]:
        """Yield what there is to tell: the conversation's id, who is before it in line, parts, and figures at the end.

        When the reader goes, this is cancelled, and the answer or search ends with the model's step.
        """
        searches = isinstance(options, SearchOptions)
        try:
            self._searching += searches
            yield _line(conversation=key, waiting=self._searching - 1 if searches else 0)
            async with self._turns.setdefault(talk, asyncio.Lock()):
                if isinstance(options, SearchOptions):
                    work: Work = self._search(talk, question.text, options)
                else:
                    work = answer_job(talk, question.text, options, self._flags.seed)
                async with aclosing(self._parts(talk, work)) as lines:
                    async for line in lines:
                        yield line
        finally:
            self._searching -= searches

    async def _parts(self, talk: Conversation, work: Work) -> AsyncGenerator[str, None]:
        """Yield the lines of an answer as it is written."""
        reader = StageReader()
        try:
            async with aclosing(follow(self._engine, work)) as pieces:
                async for [piece] in pieces:
                    for part in reader.feed(piece):
                        yield _part_line(part)
            for part in reader.finish():
                yield _part_line(part)
            yield _line(figures=asdict(talk.figures))
        except BusyError as error:
            yield _line(error=str(error))
        except UserError as error:
            yield _line(error=printable(str(error)))
        except Exception as error:
            # The page says that it went wrong, the terminal where.
            traceback.print_exception(error)
            yield _line(error=printable(f"the answer broke off ({type(error).__name__}: {error})"))

    def _search(self, talk: Conversation, question: str, options: SearchOptions) -> Solo:
        def pieces(between_steps: Callable[[], None]) -> Iterator[str]:
            with closing(talk.ask(question, options, self._flags.seed, between_steps)) as written:
                yield from written

        return Solo(pieces)


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


def web_server(app: ASGIApp, requests: int = MAX_ROWS + MAX_WAITING) -> uvicorn.Server:
    """Return the server for a page's application; what strangers send wrong is not written to the terminal.

    Args:
        app: The application.
        requests: Number of requests that its engine answers or lets wait at a time. Each takes a connection, and some
            are added, so that whoever comes too many is told by the engine.
    """
    wanted = requests + _SPARE_CONNECTIONS
    # Of 0 connections the server would refuse every one.
    connections = max(1, min(wanted, allow_open_files(wanted + _OTHER_FILES) - _OTHER_FILES))
    if connections < wanted:
        logger.warning(
            "this process may open too few files for %s connections, so %s are taken: raise the limit with `ulimit -n "
            "%d`, or give a lower --max_waiting",
            *(f"{wanted:,}", f"{connections:,}", wanted + _OTHER_FILES),
        )
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_level": "error"}
    limits: dict[str, Any] = {"limit_concurrency": connections, "timeout_graceful_shutdown": 1}
    return uvicorn.Server(uvicorn.Config(app, server_header=False, **options, **limits))
