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

if TYPE_CHECKING:
    from PIL import Image

    from cobra.talk.conversation import Conversation

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


def ask_for_image() -> "Image.Image | None":
    """Open the picture that the user names, and say so; None where no name is given."""
    from cobra.util.fetch_image import open_image

    name = input("path or address of the image (nothing for none): ").strip()
    # As a file comes that was dragged into the terminal.
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    image = open_image(name) if name else None
    seen = "no image" if image is None else f"an image of {image.width} x {image.height}"
    Console(stderr=True).print(f"a new conversation with {seen}", style="dim", highlight=False)
    return image


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
            Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped", style="dim")


def main(config: GenerateConfig) -> None:
    """Load the model and answer."""
    # Wrong options and images are reported before a model is loaded.
    config.options()
    from cobra.util.fetch_image import open_image

    image = None if config.image is None else open_image(config.image)

    from cobra.talk.conversation import Conversation

    vlm = config.load_model()
    conversation = Conversation(vlm, image)
    if config.prompt is not None:
        answer(conversation, config.prompt, config)
        return
    try:
        converse(vlm, conversation, config)
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
