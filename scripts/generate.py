"""Talk to a model about images: `python scripts/generate.py --model_path cobra-tiny`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cobra.util.cli import run
from cobra.util.errors import UserError

_MENU = "[i]mage, [p]rompt, [q]uit, or a question: "


@dataclass
class GenerateConfig:
    """Load a model and answer prompts about images, in a conversation or once."""

    model_path: str = "cobra+3b"
    """A run directory, a checkpoint file in one, or a model id; `cobra-tiny` needs no network."""
    hf_token: str = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; only for closed repositories."""
    image: str | None = None
    """A picture; with --prompt it is asked about once, without a conversation."""
    prompt: str | None = None
    """A question; the answer is printed and the program ends."""
    do_sample: bool = False
    """Sample instead of taking the best token at every step."""
    temperature: float = 1.0
    """Of sampling."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int = 7
    """Of sampling."""
    device: str | None = None
    """cuda, mps or cpu; by default the best at hand."""
    dtype: str | None = None
    """fp32, bf16 or fp16; by default fp32 on a CPU."""


def open_image(path: str) -> Any:
    """Open a picture as RGB.

    Raises:
        UserError: There is no such file, or it is not a picture.
    """
    from cobra.util.images import read_rgb

    try:
        return read_rgb(Path(path).expanduser())
    # Decoders answer damaged files with errors of almost any kind.
    except Exception as error:
        raise UserError(f"{path!r} cannot be opened as a picture ({error}): give the path of an image file") from error


def answer(vlm: Any, builder: Any, image: Any, question: str, config: GenerateConfig, console: Console) -> None:
    """Ask a question in a conversation, printing the answer as it is written."""
    import torch

    builder.add_turn("human", question)
    generator = torch.Generator(vlm.device).manual_seed(config.seed)
    pieces = []
    for piece in vlm.stream(
        image,
        builder.get_prompt(),
        do_sample=config.do_sample,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        generator=generator,
    ):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        pieces.append(piece)
    console.print()
    builder.add_turn("gpt", "".join(pieces))


def converse(vlm: Any, image: Any, config: GenerateConfig, console: Console) -> None:
    """Read images and questions from the keyboard until the user quits; a new image starts a new conversation."""
    builder = vlm.get_prompt_builder()
    while True:
        try:
            line = input(_MENU).strip()
        except EOFError:
            return
        if line in ("q", "quit"):
            return
        try:
            if line in ("i", "image"):
                image, builder = open_image(input("path of the image: ").strip()), vlm.get_prompt_builder()
            elif line in ("p", "prompt"):
                answer(vlm, builder, image, input("prompt: "), config, console)
            elif line:
                answer(vlm, builder, image, line, config, console)
        except UserError as error:
            console.print(f"error: {error}", markup=False)


def main(config: GenerateConfig) -> None:
    """Load the model and answer."""
    import cobra
    from cobra.models.vlms import GenerationOptions
    from cobra.util.tokens import read_hf_token

    console = Console()
    # Wrong options and images are told before a model is loaded.
    GenerationOptions(config.max_new_tokens, temperature=config.temperature)
    image = None if config.image is None else open_image(config.image)
    token = read_hf_token(config.hf_token)
    vlm = cobra.load(config.model_path, hf_token=token, device=config.device, dtype=config.dtype)
    if config.prompt is not None:
        answer(vlm, vlm.get_prompt_builder(), image, config.prompt, config, console)
    else:
        converse(vlm, image, config, console)


if __name__ == "__main__":
    run(main, GenerateConfig)
