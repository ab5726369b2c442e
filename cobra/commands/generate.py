"""Talk to a model about images, in a conversation or once."""

import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cobra.commands.base import Command
from cobra.talk.options import TalkFlags
from cobra.util.errors import UserError
from cobra.util.help_text import Usage
from cobra.util.home_paths import PathText
from cobra.util.printable import printable
from cobra.util.waiting import loading

if TYPE_CHECKING:
    from PIL import Image

    from cobra.talk.conversation import Conversation

_BEGIN = "Ask about the image. i opens another one, q or Ctrl-D quits, Ctrl-C stops an answer."
_BLIND = "no image: the model sees nothing, and answers with something invented"
_MENU = "[i]mage, [p]rompt, [q]uit, or a question: "


@dataclass
class GenerateConfig(TalkFlags):
    """Load a model and answer prompts about images, in a conversation or once."""

    image: PathText | None = None
    """Image to ask about, by its path or its address (http, https)."""
    prompt: str | None = None
    """Question to answer once; the program then ends."""


def answer(conversation: "Conversation", question: str, config: GenerateConfig) -> None:
    """Ask a question, printing the answer as it is written; the figures go to standard error."""
    from cobra.talk.terminal import print_answer

    with closing(conversation.ask(question, config.options(), config.seed)) as pieces:
        print_answer(pieces, Console())
    Console(stderr=True).print(str(conversation.figures), style="dim", highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Tell the user something beside the answers, on standard error."""
    Console(stderr=True).print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def ask_for_image() -> "Image.Image | None":
    """Open the picture that the user names, and say so; None where no name is given.

    Raises:
        UserError: See :func:`cobra.util.fetch_image.open_image`.
        EOFError: The user quits.
    """
    from cobra.util.fetch_image import open_image

    name = input("path or address of the image (nothing for none): ").strip()
    if name in ("q", "quit"):
        raise EOFError
    # As a file comes that was dragged into the terminal.
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    image = open_image(name) if name else None
    seen = _BLIND if image is None else f"an image of {image.width} x {image.height}"
    note(f"a new conversation with {seen}")
    return image


def ask_for_first_image() -> "Image.Image | None":
    """Ask until there is an image, or the user wants none; see :func:`ask_for_image`."""
    while True:
        try:
            return ask_for_image()
        except UserError as error:
            _print_error(error)


def _print_error(error: UserError) -> None:
    Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)


def converse(vlm: Any, conversation: "Conversation", config: GenerateConfig) -> None:
    """Read images and questions from the keyboard until the user quits; a new image begins a new conversation."""
    from cobra.talk.conversation import Conversation

    with suppress(ImportError):
        # Lines are edited and remembered; a terminal by itself cuts them at 4,095 bytes, and says nothing.
        import readline  # noqa: F401
    # Bytes that are not UTF-8 are a wrong character, and not the end.
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    while True:
        line = input(_MENU).strip()
        if line in ("q", "quit"):
            return
        try:
            if line in ("i", "image"):
                conversation = Conversation(vlm, ask_for_image())
            elif line in ("p", "prompt"):
                answer(conversation, input("prompt: "), config)
            elif line:
                answer(conversation, line, config)
        except UserError as error:
            _print_error(error)
        except KeyboardInterrupt:
            note("stopped")


def main(config: GenerateConfig) -> None:
    """Load the model and answer."""
    # Wrong options and images are reported before a model is loaded.
    config.options()
    from cobra.util.fetch_image import open_image

    image = None if config.image is None else open_image(config.image)

    note(f"loading {printable(config.model_path)}")
    with loading():
        from cobra.talk.conversation import Conversation
        from cobra.talk.knowledge import model_knowledge

    vlm = config.load_model()
    if config.prompt is not None:
        if image is None:
            note(_BLIND)
        answer(Conversation(vlm, image), config.prompt, config)
        return
    note(f"{model_knowledge(vlm)}\n{_BEGIN}")
    try:
        # Who writes lines into a pipe says with `i` where an image comes.
        if image is None and sys.stdin.isatty():
            image = ask_for_first_image()
        converse(vlm, Conversation(vlm, image), config)
    except EOFError:
        print()


COMMON = (
    "model_path",
    "image",
    "prompt",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "search",
    "beams",
    "device",
    "dtype",
)
COMMAND = Command(
    main,
    GenerateConfig,
    Usage(
        "generate",
        (
            '--model_path cobra-tiny --image scene.png --prompt "How many circles are there?"',
            '--model_path runs/my-run --image photo.jpg --prompt "What is this?" --search vote',
            "--model_path runs/my-run",
        ),
        COMMON,
        "model_path",
    ),
)
