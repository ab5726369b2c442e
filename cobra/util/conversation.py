"""Constants and text of conversations in LLaVA's format."""

ROLES = ("human", "gpt")
"""Who speaks, by turns."""
PLACEHOLDER = "<image>"
"""The image's place in a turn; the model takes the image before the text, so it is removed."""


def without_placeholder(text: str) -> str:
    """Return a turn's text without the image's placeholder, and without white space around it."""
    return text.replace(PLACEHOLDER, "").strip()
