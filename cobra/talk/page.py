"""A page to talk to a model on: pictures are uploaded, answers come stage by stage, one at a time.

Everything is served from here: the page asks nothing of any other server. Its parts of an answer are lines of JSON.
"""

import asyncio
import json
import secrets
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cobra.models.vlms import CobraVLM
from cobra.models.vlms.search import KINDS
from cobra.talk.conversation import Conversation
from cobra.talk.fetch_image import MAX_BYTES, decode_image
from cobra.talk.options import AnswerFlags
from cobra.talk.stages import Part, StageReader
from cobra.util.errors import UserError
from cobra.util.pages import page_templates
from cobra.util.shown import shown

LOOPBACK = ("127.0.0.1", "localhost", "::1")

MAX_BEAMS = 64
# Conversations that are remembered, each with its picture and states; the one unused for longest is forgotten first.
_MAX_CONVERSATIONS = 64
_MAX_QUESTION_BYTES = 1 << 20

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Question:
    """What the page asks: text, the conversation's id or none for a new one without an image, and the search."""

    text: str
    conversation: str | None
    search: str
    beams: int

    @classmethod
    def from_json(cls, body: bytes) -> "Question":
        """Read a question.

        Raises:
            UserError: It is not of the form.
        """
        try:
            found = json.loads(body)
            question = cls(found["question"], found["conversation"], found["search"], found["beams"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"the question is not of the page's form ({error!r}): load the page again") from error
        texts = (question.text, question.search, question.conversation or "")
        if not all(isinstance(text, str) for text in texts) or type(question.beams) is not int:
            raise UserError("the question is not of the page's form: load the page again")
        if not 1 <= question.beams <= MAX_BEAMS:
            raise UserError(f"a search of {question.beams} is asked for: choose 1 to {MAX_BEAMS}")
        return question


class TalkServer:
    """Conversations with one model, which writes one answer at a time; who asks meanwhile waits in line."""

    def __init__(self, vlm: CobraVLM, flags: AnswerFlags, name: str, hosts: tuple[str, ...] | None = LOOPBACK) -> None:
        """Take a model.

        Args:
            vlm: In evaluation mode.
            flags: How answers are written; a question chooses its own search.
            name: Of the model, for the page.
            hosts: Names under which it answers; None is any. On loopback this keeps out pages under other names that
                lead here.
        """
        self._hosts = hosts
        self._vlm = vlm
        self._flags = flags
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        # All of the model's work is done in one thread: torch keeps its helpers for each thread that calls it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._turn = asyncio.Lock()
        self._asking = 0
        templates = page_templates("cobra.talk")
        page = templates.get_template("talk.html.j2").render(
            name=name, kinds=KINDS, search=flags.search, beams=flags.beams, max_beams=MAX_BEAMS
        )
        style = "\n".join(templates.get_template(file).render() for file in ("page.css", "talk.css"))
        script = templates.get_template("talk.js").render()
        self._files = {
            "/": (page, "text/html"),
            "/talk.css": (style, "text/css"),
            "/talk.js": (script, "text/javascript"),
        }

    def app(self) -> Starlette:
        """Return the application."""
        routes = [Route(path, self._guarded(self._file)) for path in self._files]
        posts = {"/image": self._take_image, "/ask": self._take_question}
        routes += [Route(path, self._guarded(handle), methods=["POST"]) for path, handle in posts.items()]
        return Starlette(routes=routes)

    async def _file(self, request: Request) -> Response:
        text, kind = self._files[request.url.path]
        return Response(text, media_type=kind, headers=_HEADERS)

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that refuses what other pages send, and tells errors in words."""

        async def handler(request: Request) -> Response:
            host, origin = request.headers.get("host", ""), request.headers.get("origin")
            known = self._hosts is None or request.url.hostname in self._hosts
            # A page of somebody else's may send requests here, but not without saying so.
            if not known or (origin is not None and urlsplit(origin).netloc != host):
                return JSONResponse({"error": "the request comes from another page"}, 403, _HEADERS)
            try:
                return await handle(request)
            except UserError as error:
                return JSONResponse({"error": shown(str(error))}, 400, _HEADERS)

        return handler

    async def _take_image(self, request: Request) -> Response:
        """Begin a conversation about the picture that is the request's body."""
        data = await _body(request, MAX_BYTES, "the picture")
        # Not by the model's worker: who uploads need not wait for an answer.
        image = await asyncio.to_thread(decode_image, data, "the file")
        return JSONResponse({"conversation": self._begin(Conversation(self._vlm, image))}, headers=_HEADERS)

    def _begin(self, conversation: Conversation) -> str:
        key = secrets.token_urlsafe(16)
        self._conversations[key] = conversation
        while len(self._conversations) > _MAX_CONVERSATIONS:
            self._conversations.popitem(last=False)
        return key

    async def _take_question(self, request: Request) -> Response:
        """Answer a question with lines of JSON; see :meth:`_lines`."""
        question = Question.from_json(await _body(request, _MAX_QUESTION_BYTES, "the question"))
        replace(self._flags, beams=question.beams).options(question.search)
        key = question.conversation or self._begin(Conversation(self._vlm))
        if key not in self._conversations:
            raise UserError("this conversation has been forgotten, others came after it: begin a new one")
        self._conversations.move_to_end(key)
        lines = self._lines(request, key, self._conversations[key], question)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=_HEADERS)

    async def _lines(self, request: Request, key: str, talk: Conversation, question: Question) -> AsyncIterator[str]:
        """Yield what there is to tell: the conversation's id, who is before it in line, parts, and figures at the end.

        When the reader goes, the answer ends.
        """
        yield _line(conversation=key, waiting=self._asking)
        self._asking += 1
        try:
            async with self._turn:
                parts = self._parts(talk, question)
                try:
                    while (part := await self._work(next, parts, None)) is not None:
                        if await request.is_disconnected():
                            break
                        yield part
                finally:
                    # Put in line behind a step that may still be running, so it is not closed while it runs.
                    self._worker.submit(parts.close)
        finally:
            self._asking -= 1

    async def _work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def _parts(self, talk: Conversation, question: Question) -> Generator[str, None, None]:
        """Write an answer; yield its lines."""
        options = replace(self._flags, beams=question.beams).options(question.search)
        reader = StageReader()
        try:
            with closing(talk.ask(question.text, options, self._flags.seed)) as pieces:
                for piece in pieces:
                    for part in reader.feed(piece):
                        yield _part_line(part)
            for part in reader.finish():
                yield _part_line(part)
            yield _line(figures=asdict(talk.figures))
        except UserError as error:
            yield _line(error=shown(str(error)))
        except Exception as error:
            # The page says that it went wrong, the terminal where.
            traceback.print_exc()
            yield _line(error=shown(f"the answer broke off ({type(error).__name__}: {error})"))


def _line(**entries: Any) -> str:
    return json.dumps(entries) + "\n"


def _part_line(part: Part) -> str:
    return _line(block=part.block, stage=part.stage, text=shown(part.text))


async def _body(request: Request, limit: int, what: str) -> bytes:
    """Return the body of a request.

    Raises:
        UserError: It is larger than `limit` bytes.
    """
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > limit:
            raise UserError(f"{what} is larger than the {limit:,} bytes that are taken")
    return bytes(data)
