"""Keys of a row: the image's, and those that training does not read."""

import re
import reprlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from cobra.util.conversation import PLACEHOLDER, without_special_tokens

Row = dict[str, Any]

# See :mod:`cobra.models.vlms.cobra`.
ONE_IMAGE = "a row has one image: make a row of each"

# Fields beside the conversation that other trainers use, and further spellings of them.
_UNREAD = {
    "system": re.compile(r"system(?:_(?:prompt|message|text))?"),
    "instruction": re.compile(r"instructions?"),
    "context": re.compile(r"context"),
    "tools": re.compile(r"tools|functions"),
    "history": re.compile(r"history"),
    "messages": re.compile(r"messages"),
    "weight": re.compile(r"(?:sample_|loss_)?weight"),
    "rejected": re.compile(r"rejected(?:_.+)?"),
}
REMARKS = (
    *(f"`{key}`, which is not trained on" for key in _UNREAD),
    "turns with more than `from` and `value`, as `loss` or `weight`, which is not read",
    "a second picture, video or sound, which is not trained on",
    f"{PLACEHOLDER} in a question and no `image`; it is taken out, and they are trained on as text",
    f"{PLACEHOLDER} in an answer, or more than once; it is taken out: a row has one image, in front of its first turn",
    f"a picture's place in a question that is not called {PLACEHOLDER}, as <img> or <image_1>; it is read as text",
    "an empty answer, which teaches to say nothing",
)
"""Remarks on rows that are trained on all the same, to follow "N rows have"; bits of :func:`remarks_of`."""
_MORE_IN_TURNS, _SECOND_PICTURE, ASKS_ABOUT_IMAGE, _STRAY_PLACEHOLDER, _OTHER_PLACEHOLDER, _EMPTY_ANSWER = (
    1 << bit for bit in range(len(_UNREAD), len(REMARKS))
)

# `input_image`, `imgPath`, `image_url`, `pixel_values`, `video`; not `image_id`, `image_width`, `framework`.
_PICTURE_KEY = re.compile(
    r"(?:[a-z]+_)*(?:image|img|picture|pic|photo|pixel|frame|video|audio|media)s?_?"
    r"(?:(?:path|file|name|url|uri|value|byte|data|base64|list)s?_?)*[0-9]*"
)
_PICTURE_VALUE = re.compile(
    r"data:image/.*|\S.*\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic)", re.IGNORECASE | re.DOTALL
)
# `<img>`, `<img src=...>`, `<image_1>`, `<ImageHere>`, `<video>`, `[IMG]`, `![](a.png)`; not `<image>`.
_OTHER_NAME = re.compile(
    r"(?!(?-i:<image>))<(?:img|image|video|audio)s?[ _-]?(?:here|placeholder|token|pad|[0-9]{1,3})?\s?/?>"
    r"|<img\s[^<>]{1,300}>|\[(?:img|image)\]|!\[[^\[\]]{0,200}\]\([^()\s]{1,300}\)",
    re.IGNORECASE,
)
# White space, and characters without a width.
_NO_TEXT = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")
# A text that begins so says something: no blank, placeholder or special token stands first.
_PLAIN_START = re.compile(r"[^\W_]|<[A-Z]")
_WORD_IN_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")

_TURN_KEYS = ("from", "value")
_ROW_KEYS = frozenset(("id", "image", "images", "conversations"))
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


T = TypeVar("T")


def _remembered(function: Callable[[str], T]) -> Callable[[str], T]:
    """Let a function of a key remember its values: a file has few keys, in every row. Long ones are not kept."""
    cached = lru_cache(256)(function)
    return lambda key: cached(key) if len(key) <= 100 else function(key)


def image_of(row: Row) -> str | None:
    """Return the path of a row's image as it stands there; None for a row of text only.

    Tables cannot leave a key out: null, NaN, blank text and an empty list are no image, and a list of one path is that
    path. `images` is read as `image` is.

    Raises:
        ValueError: It has several images, or one that is not a path; the text follows the row's name.
    """
    image = row.get("image")
    if isinstance(image, str) and "images" not in row and not is_absent(image):
        return image
    paths = {path for key in ("image", "images") if (path := _only_path(key, row.get(key))) is not None}
    if len(paths) > 1:
        raise ValueError(f"has one image under `image` and another under `images`; {ONE_IMAGE}")
    return next(iter(paths), None)


def _only_path(key: str, value: Any) -> str | None:
    items = [item for item in (value if isinstance(value, list) else [value]) if not is_absent(item)]
    if len(items) > 1:
        raise ValueError(f"has {len(items)} images under `{key}`; {ONE_IMAGE}")
    if items and not isinstance(items[0], str):
        raise ValueError(f"has the {key} {_REPR.repr(value)}, which is not a path")
    return items[0] if items else None


def is_absent(value: Any) -> bool:
    """Return True if a value is what tables put where there is none."""
    blank = isinstance(value, str) and not value.strip()
    return value is None or blank or value == [] or value == {} or value != value


def with_image(row: Row, image: str | None) -> Row:
    """Return a row with its image under `image`, and without the key where it has none: itself if it is so already."""
    if "images" not in row and row.get("image") == image and ("image" in row) == (image is not None):
        return row
    without_image = {key: value for key, value in row.items() if key not in ("image", "images")}
    return without_image if image is None else without_image | {"image": image}


def unread_problem(row: Row, image: str | None) -> str | None:
    """Return what keeps a row of the right form from being trained on as it is meant, to follow its name; or None.

    `image` is as :func:`image_of` returns it.
    """
    if not is_absent(row.get("chosen")) and not is_absent(row.get("rejected")):
        return "has `chosen` and `rejected`; pairs are not trained on: make the chosen one the last answer"
    if image is not None or (key := next(_other_pictures(row), None)) is None:
        return None
    return f"has a picture under {key} and none under `image`; call the key `image`, with a path as its value"


def _other_pictures(row: Row) -> Iterator[str]:
    """Yield the places other than `image` and `images` of a row that hold a picture, a video or a sound."""
    for key, value in row.items():
        if key not in _ROW_KEYS and _is_picture(key, value):
            yield f"`{key}`"
    for turn in row["conversations"]:
        if len(turn) > 2:
            yield from (f"`{key}` of a turn" for key in turn if key not in _TURN_KEYS and _is_picture(key, turn[key]))


def _is_picture(key: str, value: Any) -> bool:
    if is_absent(value):
        return False
    named = _names_picture(key) and isinstance(value, str | list | dict)
    return named or (isinstance(value, str) and _PICTURE_VALUE.fullmatch(value) is not None)


@_remembered
def _names_picture(key: str) -> bool:
    return _PICTURE_KEY.fullmatch(spelled(key)) is not None


def spelled(key: str) -> str:
    """Return a key in one spelling: `imagePath`, `Image-Path` and `image path` are `image_path`."""
    return _WORD_IN_CAMEL_CASE.sub("_", key).lower().replace("-", "_").replace(" ", "_")


def remarks_of(row: Row, image: str | None) -> int:
    """Return which of :data:`REMARKS` hold for a row of the right form, a bit each; `image` is :func:`image_of`'s."""
    turns = row["conversations"]
    texts = [turn["value"] for turn in turns]
    bits = 0
    # Most rows have no other keys, and placeholders in no place but their own.
    has_other_keys = not row.keys() <= _ROW_KEYS
    if has_other_keys:
        for key, value in row.items():
            if key not in _ROW_KEYS and (bit := _unread_bits(key)) and not is_absent(value):
                bits |= bit
    has_more = max(map(len, turns)) > len(_TURN_KEYS)
    bits |= _MORE_IN_TURNS * has_more
    if image is not None and (has_more or has_other_keys):
        bits |= _SECOND_PICTURE * any(True for _ in _other_pictures(row))
    placed = 0
    for question in texts[::2]:
        if "<" in question or "[" in question:
            placed += question.count(PLACEHOLDER)
            bits |= _OTHER_PLACEHOLDER * (_OTHER_NAME.search(question) is not None)
    bits |= ASKS_ABOUT_IMAGE * (image is None and placed > 0)
    bits |= _STRAY_PLACEHOLDER * (image is not None and placed > 1)
    for answer in texts[1::2]:
        if not has_text(answer):
            bits |= _EMPTY_ANSWER
        elif PLACEHOLDER in answer:
            bits |= _STRAY_PLACEHOLDER
    return bits


@_remembered
def _unread_bits(key: str) -> int:
    return sum(1 << bit for bit, form in enumerate(_UNREAD.values()) if form.fullmatch(spelled(key)))


def has_text(turn: str) -> bool:
    """Return True if a turn says anything beside the placeholder of its image and the tokenizer's special tokens."""
    if _PLAIN_START.match(turn):
        return True
    return _NO_TEXT.fullmatch(without_special_tokens(turn).replace(PLACEHOLDER, "")) is None
