"""Check of the form of a row in LLaVA's format, and the reasons for which a row is rejected."""

from enum import StrEnum
from typing import Any

from cobra.preprocessing.datasets.row_keys import image_of, unread_problem
from cobra.util.conversation import ROLES

ROW_FORM = (
    '{"id": ..., "image": a path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, '
    "...]}"
)
"""The form of a row, for errors."""
MAX_ROW_BYTES = 16 * 2**20
"""The published rows have some 2 KB; a hostile one may not fill the memory."""


class Defect(StrEnum):
    """Reasons for which a row is rejected."""

    MALFORMED = "malformed line"
    NO_CONVERSATIONS = "no conversations"
    BAD_TURN = "bad turn"
    ROLE_ORDER = "role out of order"
    NO_ANSWER = "no answer"
    BAD_IMAGE_PATH = "bad image path"
    UNREAD_KEY = "key that is not read"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    DUPLICATE = "duplicate"


class RowError(Exception):
    """A row cannot be used; the text is the defect and its details.

    Attributes:
        defect: The reason.
        detail: The finding.
    """

    def __init__(self, defect: Defect, detail: str) -> None:
        super().__init__(f"{defect}: {detail}")
        self.defect, self.detail = defect, detail


def check_form(row: Any) -> str | None:
    """Check that a row can be trained on as it is meant.

    Args:
        row: The parsed JSON value.

    Returns:
        The path of its image as it stands there; None for a row of text only.

    Raises:
        RowError: It cannot; the detail follows the row's name.
    """
    if not isinstance(row, dict):
        raise RowError(Defect.MALFORMED, f"is a {type(row).__name__}, and no object")
    _check_turns(row)
    try:
        image = image_of(row)
    except ValueError as error:
        raise RowError(Defect.BAD_IMAGE_PATH, str(error)) from error
    problem = unread_problem(row, image)
    if problem:
        raise RowError(Defect.UNREAD_KEY, problem)
    return image


def _check_turns(row: dict[str, Any]) -> None:
    turns = row.get("conversations")
    if turns is None and "messages" in row:
        raise RowError(
            Defect.NO_CONVERSATIONS,
            "has `messages` in place of `conversations`: call each turn's `role` `from` (`human` for `user`, `gpt` for "
            "`assistant`) and its `content` `value`",
        )
    if not isinstance(turns, list) or not turns:
        raise RowError(Defect.NO_CONVERSATIONS, "has no conversations")
    for number, turn in enumerate(turns, 1):
        expected = ROLES[1 - number % 2]
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RowError(Defect.BAD_TURN, f"has a turn {number} without a text in 'value'")
        if not _is_unicode(turn["value"]):
            detail = f"has a turn {number} whose text holds half a surrogate pair, which no tokenizer can read"
            raise RowError(Defect.MALFORMED, detail)
        if (role := turn.get("from")) != expected:
            raise RowError(Defect.ROLE_ORDER, f"has a turn {number} from {role!r} where {expected!r} was expected")


def _is_unicode(text: str) -> bool:
    """Return True if a text can be encoded; JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
