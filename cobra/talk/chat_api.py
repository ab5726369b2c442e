"""OpenAI's API for chat completions, on the engine that the page uses too."""

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cobra.models.backbones.vision import PixelValues
from cobra.models.vlms import CobraVLM
from cobra.models.vlms.generation_mixin import TextTooLongError
from cobra.serving.engine import Engine
from cobra.serving.jobs import BusyError, Job, Prompt
from cobra.talk.api_errors import API_PREFIX, ApiError
from cobra.talk.chat_request import ChatRequest, check_size
from cobra.talk.following import follow
from cobra.talk.headers import HEADERS
from cobra.talk.options import TalkFlags
from cobra.talk.uploads import TooManyUploadsError, Uploads
from cobra.util.errors import UserError
from cobra.util.fetch_image import MAX_BYTES

# A picture in base64, and a conversation around it.
_MAX_BODY_BYTES = MAX_BYTES * 4 // 3 + (1 << 20)
# Of what stands around a conversation's texts, and for each byte of these: JSON escapes some of them.
_FORM_BYTES, _ESCAPED = 1 << 20, 4
# Prompts of so many characters are encoded in less time than another thread may need to get its turn.
_SHORT = 4096
_RETRY_SECONDS = 5

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class ChatApi:
    """The routes below `/v1/`; each request is a job of the engine."""

    def __init__(self, vlm: CobraVLM, flags: TalkFlags, name: str, engine: Engine, uploads: Uploads) -> None:
        """Serve a model under a name; what a request leaves out is as the flags say."""
        self._vlm, self._flags, self._name = vlm, flags, name
        self._engine, self._uploads = engine, uploads
        self._since = int(time.time())

    def routes(self) -> list[Route]:
        """Return the routes."""
        handlers: dict[str, tuple[str, Handler]] = {
            "models": ("GET", self._list_models),
            "models/{name:path}": ("GET", self._find_model),
            "chat/completions": ("POST", self._complete),
        }
        routes = [Route(API_PREFIX + path, _in_form(each), methods=[kind]) for path, (kind, each) in handlers.items()]
        every = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
        return [*routes, Route(API_PREFIX + "{path:path}", _in_form(_refuse), methods=every)]

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]}, headers=HEADERS)

    async def _find_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model(), headers=HEADERS)

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._since, "owned_by": "cobra-vlm"}

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                f"the model {name[:80]!r} does not exist; this server has {self._name!r}",
                "model",
                "model_not_found",
                404,
            )

    async def _complete(self, request: Request) -> Response:
        try:
            async with self._uploads.body(request, _MAX_BODY_BYTES, "the request") as body:
                check_size(body, _ESCAPED * self._vlm.max_text_characters + _FORM_BYTES)
                chat = ChatRequest.from_json(body, self._flags, self._engine.max_rows)
                self._check_model(chat.model)
                ids = await self._tokenize(chat)
                pixels = None
                if chat.image is not None:
                    pixels = await self._decode(chat.image)
        except TooManyUploadsError as error:
            raise _busy(str(error), _RETRY_SECONDS) from error
        except UserError as error:
            raise ApiError(str(error), "messages", "invalid_value") from error
        completion = _Completion(self._name, chat, self._job(chat, ids, pixels), len(ids) + self._patches(chat))
        pieces = follow(self._engine, completion.job)
        if not chat.stream:
            return await _unless_gone(request, completion.whole(pieces))
        # The first piece is waited for: an error has its own status then.
        lines = completion.lines(pieces)
        first = await _unless_gone(request, anext(lines))
        return StreamingResponse(_after(first, lines), media_type="text/event-stream", headers=HEADERS)

    async def _decode(self, image: bytes) -> PixelValues:
        try:
            return await self._uploads.reduce(image, lambda picture: self._vlm.preprocess([picture]))
        except UserError as error:
            raise ApiError(str(error), "messages", "invalid_image") from error

    async def _tokenize(self, chat: ChatRequest) -> list[int]:
        builder = self._vlm.get_prompt_builder()
        for role, text in chat.turns:
            builder.add_turn(role, text)
        prompt = builder.get_prompt()
        try:
            if len(prompt) <= _SHORT:
                return self._vlm.tokenize(prompt)
            # Meanwhile others are served.
            return await asyncio.to_thread(self._vlm.tokenize, prompt)
        except TextTooLongError as error:
            raise ApiError(
                f"This model's maximum context length is {self._vlm.max_text_length:,} tokens of text, and the "
                f"messages have {error.size}: shorten them",
                "messages",
                "context_length_exceeded",
            ) from error

    def _patches(self, chat: ChatRequest) -> int:
        return 0 if chat.image is None else self._vlm.vision_backbone.num_patches

    def _job(self, chat: ChatRequest, ids: list[int], pixels: PixelValues | None) -> Job:
        seed = secrets.randbits(62) if chat.seed is None else chat.seed
        return Job(lambda: Prompt(ids, pixels), chat.options, seed, chat.count, chat.stops)


class _Trimmed:
    """A text without white space at its beginning and its end, as `generate` returns it."""

    def __init__(self) -> None:
        self._held, self._begun = "", False

    def feed(self, piece: str) -> str:
        text = self._held + piece
        text = text if self._begun else text.lstrip()
        whole = text.rstrip()
        self._held, self._begun = text[len(whole) :], self._begun or bool(whole)
        return whole


class _Completion:
    """The answers to one request, in OpenAI's form."""

    def __init__(self, model: str, chat: ChatRequest, job: Job, prompt_tokens: int) -> None:
        self.job = job
        self._chat, self._prompt_tokens = chat, prompt_tokens
        self._texts = [_Trimmed() for _ in job.answers]
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    async def whole(self, pieces: AsyncGenerator[list[str], None]) -> Response:
        """Return all answers once they have been written."""
        texts = [""] * len(self._texts)
        async with aclosing(pieces):
            async for new in _in_words(pieces):
                texts = [text + trim.feed(piece) for text, trim, piece in zip(texts, self._texts, new, strict=True)]
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, (text, answer) in enumerate(zip(texts, self.job.answers, strict=True))
        ]
        body = self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}
        return JSONResponse(body, headers=HEADERS)

    async def lines(self, pieces: AsyncGenerator[list[str], None]) -> AsyncGenerator[str, None]:
        """Yield the events of a stream; the first once the first token has been written."""
        begun, ended = False, [False] * len(self._texts)
        try:
            async with aclosing(pieces):
                async for new in _in_words(pieces):
                    # Read before what is new of the text would be wrong: an answer ends after its last piece.
                    choices = []
                    if not begun:
                        begun = True
                        start = {"role": "assistant", "content": ""}
                        choices += [_choice(index, start, None) for index in range(len(ended))]
                    for index, (piece, answer) in enumerate(zip(new, self.job.answers, strict=True)):
                        text = self._texts[index].feed(piece)
                        choices += [_choice(index, {"content": text}, None)] if text else []
                        if self.job.ended and not ended[index]:
                            ended[index] = True
                            choices.append(_choice(index, {}, answer.finish_reason))
                    if choices:
                        yield "".join(self._event([choice]) for choice in choices)
        except ApiError as error:
            if not begun:
                raise
            yield _line(error.body())
            return
        last = self._event([], self._usage()) if self._chat.include_usage else ""
        yield last + "data: [DONE]\n\n"

    def _event(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        body = self._head | {"object": "chat.completion.chunk", "choices": choices}
        return _line(body | {"usage": usage} if self._chat.include_usage else body)

    def _usage(self) -> dict[str, int]:
        written = sum(answer.written for answer in self.job.answers)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }


def _choice(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _line(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _in_words(pieces: AsyncGenerator[list[str], None]) -> AsyncGenerator[list[str], None]:
    """Pass pieces on; what breaks them off is raised as an ApiError."""
    try:
        async for new in pieces:
            yield new
    except BusyError as error:
        raise _busy(str(error), error.seconds) from error
    except UserError as error:
        raise ApiError(str(error), "messages", "invalid_value") from error
    except Exception as error:
        # The client is told that it went wrong, the terminal where.
        traceback.print_exception(error)
        raise ApiError(f"the answer broke off ({type(error).__name__})", None, "internal_error", 500) from error


def _busy(reason: str, seconds: int) -> ApiError:
    return ApiError(reason, None, "overloaded", 503, {"Retry-After": str(seconds)})


async def _after(first: str, lines: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(lines):
        yield first
        async for line in lines:
            yield line


async def _unless_gone(request: Request, answer: Any) -> Any:
    """Return what is awaited; where the client goes first, cancel it, which ends its job.

    Raises:
        ClientDisconnect: The client has gone.
    """
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(request: Request) -> Response:
    paths = "GET /v1/models and POST /v1/chat/completions"
    raise ApiError(
        f"Invalid URL ({request.method} {request.url.path[:80]}): this server has {paths}", None, "unknown_url", 404
    )


def _in_form(handle: Handler) -> Handler:
    """Return a handler that tells errors in OpenAI's form, and nothing to whoever has gone."""

    async def handler(request: Request) -> Response:
        try:
            return await handle(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=400)

    return handler
