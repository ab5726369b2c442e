"""Read the rows of `train.jsonl` line by line, check them, and normalise them only where they must be."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.preprocessing.archives import unsafe_name
from cobra.preprocessing.datasets.row_keys import has_text, image_of, remarks_of
from cobra.preprocessing.datasets.rows import MAX_ROW_BYTES, Defect, RowError, check_form
from cobra.util import jsonl
from cobra.util.conversation import has_special_tokens, without_special_tokens
from cobra.util.errors import UserError
from cobra.util.printable import printable


@dataclass(frozen=True)
class Row:
    """One usable row."""

    id: Any
    """As published: text or number, not necessarily unique; `line-{number}` where there is none."""
    image: str | None
    """Path below the image root as published, without `./`; None for a row of text only."""
    turns: list[dict[str, str]]
    """`{"from": "human" | "gpt", "value": text}`, alternating, an answer last."""
    dropped_turn: bool
    """True if a last question without an answer was dropped."""
    cleaned: bool = False
    """True if special tokens of the tokenizer were taken out of its texts."""
    remarks: int = 0
    """Bits from :func:`cobra.preprocessing.datasets.row_keys.remarks_of`."""

    @property
    def answers(self) -> list[str]:
        """The texts of the gpt turns."""
        return [turn["value"] for turn in self.turns[1::2]]


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line number from 1, bytes read, the line without its end), in constant memory.

    The line is None where it is longer than `MAX_ROW_BYTES`. Blank lines are left out.
    """
    number = 0
    pieces = jsonl.read_lines(path, MAX_ROW_BYTES + 1)
    for line in pieces:
        number += 1
        read = len(line)
        if read <= MAX_ROW_BYTES or line.endswith(b"\n"):
            if line.strip():
                yield number, read, line.rstrip(b"\r\n")
            continue
        while not line.endswith(b"\n") and (line := next(pieces, b"")):
            read += len(line)
        yield number, read, None


def parse_line(line: bytes | None) -> dict[str, Any]:
    """Parse one line.

    Raises:
        RowError: It is too long, not UTF-8, not JSON, or not a JSON object.
    """
    if line is None:
        raise RowError(Defect.MALFORMED, f"longer than {MAX_ROW_BYTES} bytes")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError(Defect.MALFORMED, f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError(Defect.MALFORMED, f"not JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RowError(Defect.MALFORMED, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError(Defect.MALFORMED, f"a JSON {type(value).__name__}, expected an object")
    return value


def check_row(value: dict[str, Any], line: int) -> Row:
    """Check the JSON object of a line, by its number, and normalise what must be.

    A last question without an answer is dropped; a missing id becomes `line-{number}`; keys that training does not
    read are left out. Special tokens of the tokenizer are taken out of the texts, which stay as they are otherwise.

    Raises:
        RowError: The row cannot be used.
    """
    try:
        image = _checked_path(check_form(value))
    except RowError as error:
        raise RowError(error.defect, f"the row {error.detail}") from error
    turns = [{"from": turn["from"], "value": turn["value"]} for turn in value["conversations"]]
    dropped = len(turns) % 2 == 1
    turns = turns[:-1] if dropped else turns
    if not turns:
        raise RowError(Defect.NO_ANSWER, "the only turn is a question")
    cleaned = any(has_special_tokens(turn["value"]) for turn in turns)
    if cleaned:
        turns = [{**turn, "value": without_special_tokens(turn["value"])} for turn in turns]
    row_id = f"line-{line}" if value.get("id") is None else value["id"]
    row = Row(row_id, image, turns, dropped, cleaned, remarks_of(value, image))
    for number, answer in enumerate(row.answers, 1):
        if not has_text(answer):
            raise RowError(Defect.NO_ANSWER, f"turn {2 * number} is an empty answer")
    return row


def _checked_path(image: str | None) -> str | None:
    if image is None:
        return None
    path = image.removeprefix("./")
    problem = unsafe_name(path)
    if problem:
        raise RowError(Defect.BAD_IMAGE_PATH, f"has the image {printable(repr(image), 80)}, which {problem}")
    return path


def encode_row(row: Row, image: str | None) -> bytes:
    """Return a row, with this image path, as one line of JSON in LLaVA's format, UTF-8, without a line end.

    Raises:
        RowError: The row holds what neither JSON nor UTF-8 has: a lone surrogate or NaN.
    """
    return _encode({"id": row.id, **({} if image is None else {"image": image}), "conversations": row.turns})


def _encode(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError as error:
        raise RowError(Defect.MALFORMED, f"not valid Unicode or JSON: {error}") from error


def row_digests(row: Row, published_id: Any) -> tuple[bytes, bytes]:
    """Return digests that identify a row: 16 bytes of it with its published id (or None), and 8 bytes of its id.

    Raises:
        RowError: The row holds what neither JSON nor UTF-8 has, as :func:`encode_row`.
    """
    content = encode_row(Row(published_id, row.image, row.turns, False), row.image)
    return (hashlib.blake2b(content, digest_size=16).digest(), hashlib.blake2b(_encode(row.id), digest_size=8).digest())


def sample_images(train: Path, count: int = 2000) -> list[str]:
    """Return image paths of up to `count` rows, drawn evenly from the whole file in constant memory (reservoir).

    Raises:
        UserError: No line of the file is a JSON object, or the file is a JSON list cut into lines.
    """
    draw = random.Random(0)
    sample: list[str] = []
    rows = malformed = seen = 0
    first_problem = ""
    for number, _, line in read_lines(train):
        try:
            value = parse_line(line)
        except RowError as error:
            malformed += 1
            first_problem = first_problem or f"line {number}: {error}"
            continue
        rows += 1
        try:
            image = _checked_path(image_of(value))
        except (RowError, ValueError):
            image = None
        if image is None:
            continue
        seen += 1
        if len(sample) < count:
            sample.append(image)
        elif (index := draw.randrange(seen)) < count:
            sample[index] = image
    if not rows or (malformed > rows and jsonl.opens_list(train)):
        lines = malformed + rows
        problem = f"{malformed} of its {lines} lines are none, first {first_problem}" if malformed else "empty"
        raise UserError(
            f"{train} is not JSON lines, one object a line: {problem}. Fetch it again, or convert it: "
            "`jq -c .[] FILE` writes a JSON list so."
        )
    return sample
