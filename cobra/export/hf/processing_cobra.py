"""Image processor and processor of a Cobra model in transformers: pixels as in training, and placeholders in the text.

A row has one image or none, and the model reads it before the text: the placeholder `<image>` begins the text, as the
chat template has it, and becomes as many placeholders as the image has positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from cobra.models.backbones.vision.transforms import build_transform
from cobra.util.rgb import to_rgb

IMAGE_TOKEN = "<image>"
# Colours, or colours and alpha.
_CHANNELS = (3, 4)


class CobraImageProcessor(BaseImageProcessor):
    """Pictures of any mode to normalised pixels, of several towers one after the other on the channels.

    Args:
        size: Side of the square image in pixels.
        resize_strategy: `resize-naive` (squeezed), `resize-crop` or `letterbox`.
        image_mean: Mean of each channel, for each tower.
        image_std: Standard deviation of each channel, for each tower.
        **kwargs: See `ImageProcessingMixin`.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 384,
        resize_strategy: str = "resize-naive",
        image_mean: Sequence[Sequence[float]] = (),
        image_std: Sequence[Sequence[float]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.resize_strategy = resize_strategy
        self.image_mean = [list(each) for each in image_mean]
        self.image_std = [list(each) for each in image_std]

    def preprocess(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        """Return `pixel_values` (images, 3 * towers, size, size), fp32, of pictures, paths or addresses.

        Raises:
            ValueError: One is no picture that PIL has read; or there are arguments that would change the pixels.
        """
        refused = {name for name, value in kwargs.items() if value is not None} - {"input_data_format", "device"}
        if refused:
            raise ValueError(f"this image processor has no {', '.join(sorted(refused))}: its pixels are the training's")
        transforms = [
            build_transform(self.resize_strategy, self.size, tuple(mean), tuple(std))
            for mean, std in zip(self.image_mean, self.image_std, strict=True)
        ]
        rows = []
        for image in _flat(self.fetch_images(images)):
            picture = to_rgb(_as_pil(image))
            rows.append(torch.cat([transform(picture) for transform in transforms]))
        return BatchFeature({"pixel_values": torch.stack(rows)})


def _flat(images: Any) -> list[Any]:
    flat: Any = make_flat_list_of_images(images)
    return list(flat)


def _as_pil(image: Any) -> Image.Image:
    """Return a picture as PIL has it, or a ValueError.

    An array or tensor is uint8 (height, width, channels) or (channels, height, width), of 3 channels, or 4 with alpha.
    """
    if isinstance(image, Image.Image):
        return image
    found = type(image).__name__
    if isinstance(image, np.ndarray | torch.Tensor):
        found += f" of {image.dtype} {tuple(image.shape)}"
        array = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
        if array.ndim == 3 and array.shape[-1] not in _CHANNELS:
            array = array.transpose(1, 2, 0)
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in _CHANNELS:
            return Image.fromarray(array)
    raise ValueError(
        f"an image is a {found}: expected a PIL image, a path or address of one, or an array of uint8 "
        "(height, width, 3) or (3, height, width)"
    )


class CobraProcessor(ProcessorMixin):
    """Tokenizer and image processor together.

    Args:
        image_processor: Makes the pixels.
        tokenizer: GPT-NeoX's kind with `<image>` as a token; pads on the left.
        chat_template: Jinja template of a conversation.
        image_tokens: Positions of an image.
        **kwargs: See `ProcessorMixin`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        self.image_tokens = image_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @staticmethod
    def get_possibly_dynamic_module(module_name: str) -> Any:
        """Return the class of that name; transformers' own look-up stumbles over image processors that are registered.

        Registered by :meth:`AutoImageProcessor.register`, they lie in its table as dictionaries without a name.
        """
        if module_name == CobraImageProcessor.__name__:
            return CobraImageProcessor
        return ProcessorMixin.get_possibly_dynamic_module(module_name)

    def validate_inputs(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> None:
        """Check that each text has its image's one placeholder, at its beginning.

        Raises:
            ValueError: A placeholder is missing, twice in a text, or not first; or there are videos or sound.
        """
        others = [name for name in ("videos", "audio") if kwargs.get(name) is not None]
        if others:
            raise ValueError(f"this model takes images and text, and no {' and no '.join(others)}")
        if text is not None and not all(isinstance(each, str) for each in text):
            raise ValueError("text must be a string or a list of strings")
        texts = list(text or [])
        for row, each in enumerate(texts):
            if each.count(IMAGE_TOKEN) > 1:
                raise ValueError(
                    f"text {row} has {each.count(IMAGE_TOKEN)} placeholders {IMAGE_TOKEN}: this model reads one image "
                    "in a conversation; ask about several in a batch of texts"
                )
            if IMAGE_TOKEN in each and not each.startswith(IMAGE_TOKEN):
                raise ValueError(
                    f"text {row} has {IMAGE_TOKEN} after its beginning: this model reads the image before the text, so "
                    f"put {IMAGE_TOKEN} first, as apply_chat_template does"
                )
        if text is None:
            return
        places = sum(IMAGE_TOKEN in each for each in texts)
        count = 0 if images is None else len(_flat(images))
        if places != count:
            raise ValueError(
                f"the texts have {places} placeholders {IMAGE_TOKEN} and there are {count} images: give each image its "
                "placeholder, at the beginning of its text; apply_chat_template writes it"
            )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the placeholders of an image."""
        return IMAGE_TOKEN * self.image_tokens

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the model takes of what is returned."""
        return ["input_ids", "attention_mask", "pixel_values"]
