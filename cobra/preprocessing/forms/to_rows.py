"""Write records of other forms as rows in LLaVA's format."""

from pathlib import PurePosixPath
from typing import Any

from cobra.preprocessing.datasets.other_forms import (
    ANSWER_COLUMNS,
    IMAGE_COLUMNS,
    QUESTION_COLUMNS,
    SPEAKERS,
    Form,
    form_of,
    turns_of,
)
from cobra.preprocessing.datasets.row_keys import Row, has_text, is_absent, spelled
from cobra.preprocessing.datasets.rows import Defect, RowError
from cobra.preprocessing.forms.records import Record
from cobra.util.conversation import PLACEHOLDER
from cobra.util.printable import printable


def to_row(record: Record, question: str | None) -> Any:
    """Return a record as a row in LLaVA's format; itself where it is one, or is of no known form.

    Args:
        record: A record of :meth:`cobra.preprocessing.forms.records.Source.records`.
        question: Question of rows that have an answer alone; None refuses these.

    Raises:
        RowError: It cannot be read as it is meant.
    """
    value = record.value
    if isinstance(value, RowError):
        raise value
    form = form_of(value)
    if form is Form.MESSAGES:
        return _of_messages(value)
    return _of_fields(value, question) if form is Form.FIELDS else value


def _of_fields(row: Row, question: str | None) -> Row:
    """Return the row of a question and an answer that stand under names of their own."""
    keys = {spelled(key.strip()): key for key, value in row.items() if isinstance(key, str) and not is_absent(value)}
    image, asked, answer = (
        next((keys[name] for name in names if name in keys), None)
        for names in (IMAGE_COLUMNS, QUESTION_COLUMNS, ANSWER_COLUMNS)
    )
    if answer is None:
        raise RowError(Defect.NO_ANSWER, "has no answer")
    if asked is None and question is None:
        raise RowError(Defect.NO_CONVERSATIONS, f"has an answer under {answer!r} and no question")
    texts = [question if asked is None else row[asked]]
    used = {image, asked, answer}
    # An instruction, and the text that it is about.
    if asked is not None and spelled(asked) == "instruction" and "input" in keys:
        texts.append(row[keys["input"]])
        used.add(keys["input"])
    for text in (*texts, row[answer]):
        if isinstance(text, list | dict):
            raise RowError(
                Defect.BAD_TURN, f"has {_shown(text)} where the text of a question or an answer was expected"
            )
    turns = [("human", "\n".join(map(str, texts))), ("gpt", str(row[answer]).strip())]
    rest = {key: value for key, value in row.items() if key not in used and not is_absent(value)}
    return _row(rest, [] if image is None else [_path_of(row[image])], turns)


def _of_messages(row: Row) -> Row:
    """Return the row of messages: a role and a content each, which is a text or a list of texts and images."""
    turns: list[tuple[str, str]] = []
    images: list[str] = []
    system = []
    for number, turn in enumerate(turns_of(row) or (), 1):
        role = SPEAKERS.get(str(turn.get("role", turn.get("from")))) if isinstance(turn, dict) else None
        if role is None:
            raise RowError(
                Defect.ROLE_ORDER, f"has a turn {number} from {_shown(turn)}; known are {', '.join(SPEAKERS)}"
            )
        text = _text_of(turn.get("content", turn.get("value")), number, images)
        if role == "system":
            system.append(text)
        else:
            turns.append((role, text))
    rest = {key: value for key, value in row.items() if key not in ("messages", "conversations")}
    if isinstance(rest.get("prompt"), list) and isinstance(rest.get("completion"), list):
        del rest["prompt"], rest["completion"]
    images = images or _images_of(rest)
    return _row(rest | ({"system": "\n".join(system)} if system else {}), images, turns)


def _images_of(row: Row) -> list[str]:
    """Take the images that stand beside the turns out of a row, and return their paths."""
    values = [row.pop(key, None) for key in ("image", "images")]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [_path_of(item) for item in items if not is_absent(item)]


def _text_of(content: Any, number: int, images: list[str]) -> str:
    """Return the text of a message; the paths of its images are added to `images`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(Defect.BAD_TURN, f"has a turn {number} without a text in 'content'")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(PLACEHOLDER)
            images += [_path_of(part[key]) for key in ("image", "image_url", "path", "url") if part.get(key)][:1]
        else:
            raise RowError(
                Defect.BAD_TURN, f"has a part in turn {number} that is neither text nor image: {_shown(part)}"
            )
    return "\n".join(texts)


def _path_of(image: Any) -> str:
    """Return the path of an image, which tables and messages may hold in an object."""
    if isinstance(image, dict):
        image = next((image[key] for key in ("path", "url", "file_name") if isinstance(image.get(key), str)), image)
    if not isinstance(image, str):
        raise RowError(Defect.BAD_IMAGE_PATH, f"has the image {_shown(image)}, which is not a path")
    if image.startswith("data:"):
        raise RowError(
            Defect.BAD_IMAGE_PATH, "has an image written as text (base64): save it as a file, and name its path"
        )
    # As tables from Windows have them; a name with a backslash is none that people choose.
    return image.removeprefix("file://").replace("\\", "/").removeprefix("./")


def _row(rest: Row, images: list[str], turns: list[tuple[str, str]]) -> Row:
    """Return a row; the placeholder is put in front of the first question about an image."""
    values = [{"from": role, "value": text} for role, text in turns]
    if images and values and not any(PLACEHOLDER in text for role, text in turns if role == "human"):
        values[0]["value"] = f"{PLACEHOLDER}\n{values[0]['value']}"
    if values and values[-1]["from"] == "gpt" and not has_text(values[-1]["value"]):
        raise RowError(Defect.NO_ANSWER, "has an empty answer")
    identity = {"id": rest.pop("id", PurePosixPath(images[0]).name if images else None)}
    image = {"image": images[0]} if len(images) == 1 else {"images": images} if images else {}
    return identity | rest | image | {"conversations": values}


def _shown(value: Any) -> str:
    return printable(repr(value), 80)
