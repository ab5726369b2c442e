"""Requests for chat completions: what OpenAI's API has, as far as this model can do it; the rest is refused by name."""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cobra.models.generation.options import GenerationOptions
from cobra.talk.api_errors import ApiError
from cobra.talk.options import TalkFlags
from cobra.util.conversation import without_special_tokens
from cobra.util.errors import UserError, known_ones
from cobra.util.fetch_image import MAX_BYTES

MAX_STOPS = 4
"""Stop texts of a request at most."""
MAX_TOKENS = 65_536
"""Tokens of an answer at most."""

_LONGEST_STOP = 256
_MAX_SEED = 2**63
# Of a data URL in JSON, where some escape the slash; the parser makes no more of it than one text.
_DATA = re.compile(rb";base64,[A-Za-z0-9+/=\\]*", re.IGNORECASE)
# No token has this id: nothing ends an answer but its limit.
_NEVER = -1
_DATA_URL = re.compile(r"data:image/[A-Za-z0-9.+-]+;base64,", re.IGNORECASE)

_TAKEN = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed"),
    *("stream", "stream_options"),
    # Of vLLM and others.
    *("top_k", "min_p", "repetition_penalty", "ignore_eos"),
)
# What clients send unasked; it is taken where it asks for nothing that this model cannot do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "web_search_options": (),
    "best_of": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
}
# Of whatever value: they do not touch the answer.
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_ROLES = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt"}
# Of messages that a client sends back as it has got them; none may say anything.
_ECHOED = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "reasoning")


@dataclass(frozen=True)
class ChatRequest:
    """A request for one or several answers to a conversation."""

    model: str
    """Name of the model that is asked for."""
    turns: list[tuple[str, str]]
    """Texts of `human` and `gpt` by turns; the last is the human's."""
    image: bytes | None
    """File of the picture that the conversation is about."""
    options: GenerationOptions
    """How tokens are chosen."""
    count: int
    """Number of answers."""
    stops: tuple[str, ...]
    """Texts before which an answer ends."""
    seed: int | None
    """Seed of the first answer; each further one takes the next number."""
    stream: bool
    """True to be sent the answers piece by piece."""
    include_usage: bool
    """True to be sent the number of tokens at the end of a stream."""

    @classmethod
    def from_json(cls, body: bytes, flags: TalkFlags, max_count: int) -> "ChatRequest":
        """Read a request.

        Args:
            body: The request's body.
            flags: The server's defaults of what the request leaves out.
            max_count: Answers at most.

        Raises:
            ApiError: It is no JSON object; a parameter is unknown, of another type or out of its range, or asks for
                something that this model cannot do; or the messages are no conversation about one image at most.
        """
        fields = _object(body)
        _check_names(fields)
        stream = _value(fields, "stream", bool, False)
        turns, image = _conversation(fields.get("messages"))
        return cls(
            *(_model(fields), turns, image, _options(fields, flags)),
            count=_number(fields, "n", int, 1, 1, max_count),
            stops=_stops(fields.get("stop")),
            seed=_number(fields, "seed", int, None, -_MAX_SEED, _MAX_SEED),
            stream=stream,
            include_usage=_include_usage(fields, stream),
        )


def check_size(body: bytes, most: int) -> None:
    """Check a request before it is parsed: of 86 MB of `[],` a parser makes 3 GB in 15 s.

    Raises:
        ApiError: It has more than `most` bytes besides its pictures.
    """
    size = len(body)
    if size > most:
        size -= sum(found.end() - found.start() for found in _DATA.finditer(body))
    if size > most:
        raise ApiError(
            f"the request has {size:,} bytes besides its picture, more than the {most:,} of the longest messages that "
            "this model reads: shorten them",
            "messages",
            "context_length_exceeded",
        )


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON ({error})", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(f"the body is JSON of the type {_kind(fields)}, expected an object", code="invalid_json")
    return fields


def _check_names(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if value is None or name in _TAKEN or name in _LABELS:
            continue
        if name not in _NEUTRAL:
            known = [*_TAKEN, *_NEUTRAL, *_LABELS]
            raise ApiError(f"unknown parameter {name!r}; {known_ones(known, name)}", name, "unknown_parameter")
        if not any(value == neutral for neutral in _NEUTRAL[name]):
            allowed = " or ".join(json.dumps(neutral) for neutral in (*_NEUTRAL[name], None))
            raise ApiError(
                f"{name} is {_shown(value)}, which this model cannot do: leave it out, or give {allowed}",
                name,
                "unsupported_parameter",
            )


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str):
        raise ApiError(
            f"model is {_shown(model)}, expected the name of a model: GET /v1/models lists it",
            "model",
            "missing_required_parameter" if model is None else "invalid_type",
        )
    return model


def _options(fields: Mapping[str, Any], flags: TalkFlags) -> GenerationOptions:
    """Return the options of the answers; what is left out is as the server's flags say."""
    limits = {name: _number(fields, name, int, None, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens")}
    given = {value for value in limits.values() if value is not None}
    if len(given) > 1:
        raise ApiError("max_tokens and max_completion_tokens differ: give one of them", "max_tokens", "invalid_value")
    temperature = _number(fields, "temperature", float, None, 0, 2)
    top_p = _number(fields, "top_p", float, None, 0, 1)
    # Whoever narrows the choice wants one.
    samples = flags.do_sample or (top_p is not None and top_p < 1)
    if temperature is not None:
        samples = temperature > 0
    values = {
        "max_new_tokens": given.pop() if given else flags.max_new_tokens,
        "do_sample": samples,
        "temperature": temperature or flags.temperature or 1.0,
        "top_p": (flags.top_p or 1.0) if top_p is None else top_p,
        "top_k": _number(fields, "top_k", int, flags.top_k, -1, 2**31),
        "min_p": _number(fields, "min_p", float, flags.min_p, 0, 1),
        "repetition_penalty": _number(fields, "repetition_penalty", float, flags.repetition_penalty, 0, 10),
        "eos_token_id": _NEVER if _value(fields, "ignore_eos", bool, False) else None,
    }
    # vLLM's word for all of them.
    values["top_k"] = max(values["top_k"], 0)
    try:
        return GenerationOptions(**values)
    except UserError as error:
        raise ApiError(str(error), str(error).split()[0], "invalid_value") from error


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError(f"stop is {_shown(value)}, expected a text or a list of texts", "stop", "invalid_type")
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
        raise ApiError(
            f"stop may be {MAX_STOPS} texts of 1 to {_LONGEST_STOP} characters each at most", "stop", "invalid_value"
        )
    return tuple(stops)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise ApiError(f"stream_options is {_shown(options)}, expected an object", "stream_options", "invalid_type")
    if not stream:
        raise ApiError("stream_options are given without stream: true", "stream_options", "invalid_value")
    for name, value in options.items():
        if name != "include_usage" and not (name == "include_obfuscation" and not value):
            raise ApiError(f"unknown parameter stream_options.{name}", f"stream_options.{name}", "unknown_parameter")
    return _value(options, "include_usage", bool, False)


def _conversation(messages: Any) -> tuple[list[tuple[str, str]], bytes | None]:
    """Return the turns, and the picture's file."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(
            f"messages is {_shown(messages)}, expected a list of one or more",
            "messages",
            "missing_required_parameter" if messages is None else "invalid_type",
        )
    turns: list[tuple[str, str]] = []
    instructions: list[str] = []
    urls: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role, text = _message(message, where, urls)
        if role == "system":
            if turns:
                raise ApiError(f"{where} is a system message: it must come first", where, "invalid_value")
            instructions += [text] if text.strip() else []
            continue
        expected = ("human", "gpt")[len(turns) % 2]
        if role != expected:
            raise ApiError(
                f"{where} is from {message['role']!r}: messages of user and assistant must alternate, and begin with "
                "the user's",
                where,
                "invalid_value",
            )
        turns.append((role, text))
    if not turns or turns[-1][0] != "human":
        raise ApiError("the last message must be the user's", "messages", "invalid_value")
    # The model's prompt formats have no place for a system message, so it stands before the first question.
    turns[0] = ("human", "\n\n".join([*instructions, turns[0][1]]))
    return turns, _picture(urls)


def _message(message: Any, where: str, urls: dict[str, str]) -> tuple[str, str]:
    """Return role and text of a message; add the addresses of its pictures, with the place where they stand."""
    if not isinstance(message, dict):
        raise ApiError(f"{where} is {_shown(message)}, expected an object", where, "invalid_type")
    for name, value in message.items():
        if name in ("role", "content") or not value and name in _ECHOED or value is None:
            continue
        raise ApiError(f"unknown parameter {where}.{name}", f"{where}.{name}", "unknown_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(
            f"{where}.role is {_shown(role)}, expected one of {', '.join(_ROLES)}", f"{where}.role", "invalid_value"
        )
    content, name = message.get("content"), f"{where}.content"
    if content is None and role == "assistant":
        content = ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ApiError(f"{name} is {_shown(content)}, expected a text or a list of parts", name, "invalid_type")
    texts = []
    for index, part in enumerate(parts):
        place = f"{name}[{index}]"
        if part.get("type") == "image_url" and role == "user":
            urls.setdefault(_image_url(part, place), place)
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ApiError(
                f"{place} is of the type {_shown(part.get('type'))}: the model reads text, and of the user image_url",
                place,
                "invalid_value",
            )
    # Halves of surrogate pairs have no tokens, and special tokens would end the turn.
    text = "\n".join(texts).encode("utf-8", "replace").decode("utf-8")
    return _ROLES[role], without_special_tokens(text)


def _image_url(part: Mapping[str, Any], place: str) -> str:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise ApiError(f'{place}.image_url is {_shown(image)}, expected {{"url": "data:image/png;base64,..."}}', place)
    if isinstance(image, dict) and image.get("detail") not in (None, "auto", "low", "high"):
        raise ApiError(f"{place}.image_url.detail is {_shown(image['detail'])}", f"{place}.image_url.detail")
    return url


def _picture(urls: Mapping[str, str]) -> bytes | None:
    """Return the file of the only picture."""
    if not urls:
        return None
    (url, place), *others = urls.items()
    if others:
        raise ApiError(
            f"there are {len(urls)} pictures: the model reads one, before the conversation",
            others[0][1],
            "invalid_value",
        )
    head = _DATA_URL.match(url)
    if head is None:
        raise ApiError(
            f"{place} begins with {_shown(url[:40])}: nothing is fetched from elsewhere, so send the picture as "
            "data:image/png;base64,... (or jpeg, webp)",
            place,
            "invalid_image_url",
        )
    if (len(url) - head.end()) * 3 // 4 > MAX_BYTES:
        raise ApiError(f"{place} is larger than the {MAX_BYTES:,} bytes that are taken", place, "image_too_large")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{place} is no base64 ({error})", place, "invalid_image_url") from error


def _number(fields: Mapping[str, Any], name: str, kind: type, default: Any, least: float, most: float) -> Any:
    """Return a number; JSON's null and what is left out are the default."""
    value = _value(fields, name, (int, float) if kind is float else int, default)
    if value is not None and not least <= value <= most:
        raise ApiError(f"{name} is {_shown(value)} and must be from {least:,} to {most:,}", name, "invalid_value")
    return value


def _value(fields: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds: Sequence[type] = kind if isinstance(kind, tuple) else (kind,)
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kinds[-1]]
        raise ApiError(f"{name} is {_shown(value)}, expected {wanted}", name, "invalid_type")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
