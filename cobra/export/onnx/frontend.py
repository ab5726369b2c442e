"""Prompts and pictures as an exported model takes them, from `inputs.json`, `tokenizer.json` and the graph of towers.

This module goes along with an export: it needs numpy, Pillow, tokenizers and onnxruntime, and no other file than those
beside it.
"""

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from cobra.util.conversation import without_placeholder, without_special_tokens
from cobra.util.rgb import to_rgb

# Pixels that a picture may grow to: a strip of 1 x 60,000 would be padded to 11 GB.
_MOST_PIXELS = 180_000_000
_FORMAT = 1
MAX_NEW_TOKENS = 512


class Frontend:
    """Tokenizer, prompt format, image preprocessing and vision towers of an exported folder.

    Attributes:
        inputs: Content of `inputs.json`.
        end: Id of the token that ends an answer.
    """

    def __init__(self, folder: Path, open_graph: Callable[[str], onnxruntime.InferenceSession]) -> None:
        """Read a folder; `open_graph` opens a graph of it by its file's name.

        Raises:
            ValueError: It is not of a form that this version knows.
        """
        found = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        form = found.get("format") if isinstance(found, dict) else None
        if form != _FORMAT:
            raise ValueError(f"{folder / 'inputs.json'} is of format {form}, expected {_FORMAT}")
        self.inputs: dict[str, Any] = found
        self.end: int = self.inputs["ids"]["end"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._towers = open_graph("vision.onnx")

    def prompt(self, question: str) -> list[int]:
        """Return the ids of a question in the model's prompt format.

        Raises:
            ValueError: It is longer than the model's longest text.
        """
        text = self.inputs["prompt"].replace("{message}", without_placeholder(without_special_tokens(question)))
        ids = list(self._tokenizer.encode(text).ids)
        if len(ids) > self.inputs["max_text_length"]:
            raise ValueError(f"the prompt has {len(ids)} tokens, the most are {self.inputs['max_text_length']}")
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Return the image features (pictures, positions, d_model) float32, which a prompt follows."""
        images = self.inputs["images"]
        rgb = [to_rgb(picture) for picture in pictures]
        pixels = {
            name: np.stack([pixels_of(image, images["resize"], **tower) for image in rgb])
            for name, tower in images["towers"].items()
        }
        return self._towers.run(None, pixels)[0]


class FrontendRunner(ABC):
    """An exported model on some runtime.

    Attributes:
        frontend: Its tokenizer, prompt format and towers.
    """

    def __init__(
        self, folder: Path | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """Open a folder.

        Args:
            folder: The exported folder.
            threads: Threads of each runtime; 0 is its choice.
            providers: Devices of onnxruntime, the preferred one first.

        Raises:
            ValueError: The folder is not of a form that this version knows, or a runtime cannot read the model.
        """
        self._folder, self._threads, self._providers = Path(folder), threads, list(providers)
        self.frontend = Frontend(self._folder, self._open_graph)

    def _open_graph(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(self._folder / name, options, providers=self._providers)

    @abstractmethod
    def write(
        self, features: np.ndarray | None, prompts: Sequence[Sequence[int]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> tuple[list[list[int]], np.ndarray]:
        """Go on with prompts of any lengths greedily.

        Args:
            features: Image features (rows, positions, d_model) before each prompt, or None for text alone.
            prompts: Ids of each prompt, at least one each.
            max_new_tokens: Most tokens of an answer, at least 1.

        Returns:
            The ids of each answer, the end token included, and the scores of each first token (rows, vocabulary).
        """

    def answer(
        self,
        pictures: Sequence[Image.Image | None],
        questions: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = 16,
    ) -> list[str]:
        """Answer questions greedily, each about its picture or, with None, about none.

        Raises:
            ValueError: There are not as many pictures as questions, a question is too long, or a limit is below 1.
        """
        for name, limit in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if limit < 1:
                raise ValueError(f"{name} is {limit} and must be at least 1")
        if len(pictures) != len(questions):
            raise ValueError(
                f"there are {len(pictures)} pictures and {len(questions)} questions: give each question its picture, "
                "or None for none"
            )
        answers = [""] * len(questions)
        for rows in batches_of(pictures, batch_size):
            several = [picture for picture in (pictures[row] for row in rows) if picture is not None]
            features = self.frontend.features(several) if several else None
            prompts = [self.frontend.prompt(questions[row]) for row in rows]
            written, _ = self.write(features, prompts, max_new_tokens)
            for row, ids in zip(rows, written, strict=True):
                answers[row] = self.frontend.text(ids)
        return answers


def pixels_of(image: Image.Image, resize: str, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return the pixels (3, size, size) float32 of an RGB picture.

    Args:
        image: The picture.
        resize: `resize-naive` squeezes to a square, `resize-crop` cuts the longer side, `letterbox` pads the shorter.
        size: Side in pixels.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.

    Raises:
        ValueError: The picture is so thin that it would fill the memory.
    """
    if resize == "letterbox":
        _check_growth(max(image.size) ** 2)
        margins = [(max(image.size) - side) // 2 for side in image.size]
        padded = [side + 2 * margin for side, margin in zip(image.size, margins, strict=True)]
        square = Image.new("RGB", (padded[0], padded[1]), tuple(int(channel * 255) for channel in mean))
        square.paste(image, (margins[0], margins[1]))
        image = square
    target = [size, size]
    if resize != "resize-naive":
        shorter = min(image.size)
        target = [size if side == shorter else int(size * side / shorter) for side in image.size]
        _check_growth(target[0] * target[1])
    image = image.resize((target[0], target[1]), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in target)
    values = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / np.float32(255)
    return ((values - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def _check_growth(pixels: int) -> None:
    if pixels > _MOST_PIXELS:
        raise ValueError(f"the picture is too thin: resizing would make {pixels:,} pixels of it")


def batches_of(pictures: Sequence[Image.Image | None], size: int) -> list[list[int]]:
    """Return the indices of the questions in batches, those with a picture apart from those without."""
    kinds: list[list[int]] = [[], []]
    for row, picture in enumerate(pictures):
        kinds[picture is None].append(row)
    return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]


def main(runner: Callable[[Path], FrontendRunner]) -> None:
    """Answer one question from the command line, with the folder that this module lies in.

    Raises:
        SystemExit: Something cannot be read or answered; one line says what, and the code is 2.
    """
    parser = argparse.ArgumentParser(description="Answer a question about a picture with an exported model.")
    parser.add_argument("picture", help="Path of the picture, or - for a question without one.")
    parser.add_argument("question")
    parser.add_argument("--max_new_tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="The exported folder.")
    args = parser.parse_args()

    def fail(problem: str) -> NoReturn:
        parser.exit(2, f"error: {' '.join(problem.split())}\n")

    picture = None
    try:
        if args.picture != "-":
            picture = to_rgb(Image.open(args.picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fail(f"{args.picture} cannot be opened as a picture ({error}): give a whole file of one, or - for none")
    try:
        opened = runner(args.folder)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        fail(f"{package} is not installed: pip install {package}")
    except ImportError as error:
        fail(f"an installed package cannot be loaded: {error}")
    except Exception as error:  # noqa: BLE001 - each runtime raises errors of its own
        fail(f"no model can be read from {args.folder}, which must be as the export has written it ({error})")
    try:
        print(opened.answer([picture], [args.question], args.max_new_tokens)[0])
    except ValueError as error:
        fail(str(error))
