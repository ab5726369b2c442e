"""Prompts and pictures as an exported model takes them, from `inputs.json`, `tokenizer.json` and the graph of towers.

This module goes along with an export: it needs numpy, Pillow, tokenizers and onnxruntime, and no other file than those
beside it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from cobra.util.conversation import without_placeholder, without_special_tokens
from cobra.util.rgb import to_rgb

# Pixels that a picture may grow to: a strip of 1 x 60,000 would be padded to 11 GB.
_MOST_PIXELS = 180_000_000
_FORMAT = 1


class Frontend:
    """Tokenizer, prompt format, image preprocessing and vision towers of an exported folder.

    Attributes:
        inputs: Content of `inputs.json`.
        end: Id of the token that ends an answer.
    """

    def __init__(self, folder: Path, options: onnxruntime.SessionOptions, providers: Sequence[str]) -> None:
        """Read a folder.

        Raises:
            ValueError: It is not of a form that this version knows.
        """
        self.inputs: dict[str, Any] = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        if self.inputs["format"] != _FORMAT:
            raise ValueError(f"{folder / 'inputs.json'} is of format {self.inputs['format']}, expected {_FORMAT}")
        self.end: int = self.inputs["ids"]["end"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._towers = onnxruntime.InferenceSession(folder / "vision.onnx", options, providers=list(providers))

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
