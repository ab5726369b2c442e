"""Talk to a model about images in the terminal."""

from dataclasses import dataclass

from cobra.commands import generate
from cobra.commands.base import Command
from cobra.talk.options import TalkFlags
from cobra.util.help_text import Usage
from cobra.util.home_paths import PathText


@dataclass
class ChatConfig(TalkFlags):
    """Talk to a model about images in the terminal."""

    image: PathText | None = None
    """Image to begin with, by its path or its address (http, https)."""


def main(config: ChatConfig) -> None:
    """Load the model and converse."""
    generate.main(generate.GenerateConfig(**vars(config)))


COMMAND = Command(
    main,
    ChatConfig,
    Usage(
        "chat",
        ("cobra-tiny", "runs/my-run --image photo.jpg", "runs/my-run --do_sample --temperature 0.7"),
        tuple(name for name in generate.COMMON if name != "prompt"),
        "model_path",
    ),
)
