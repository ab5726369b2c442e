"""A model that answers by rule, with the interface that the benchmark uses."""

from types import SimpleNamespace

import torch

from cobra.evaluation.responses.protocol import ANALYSIS_PROMPT
from cobra.models.mamba import MambaState

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


class FakePromptBuilder:
    def __init__(self):
        self.text = ""

    def add_turn(self, role, message):
        assert role == "human" and not self.text
        self.text = f"<|user|>\n{message}\n<|assistant|>\n"
        return self.text

    def get_prompt(self):
        return self.text


class FakeVLM:
    """Sees the colour of an image; writes four stages if `staged`; records the calls it gets.

    Its tokens are characters, and its state after an image is the image's colour.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    max_text_length = 2048
    quantized = None

    def __init__(self, name, staged=False, is_stock=True):
        self.model_id = name
        self.checkpoint_sha256 = (name.encode().hex() + "0" * 64)[:64]
        self.is_stock = is_stock
        self.staged = staged
        self.calls = []
        self.reads = []
        self.vision_backbone = SimpleNamespace(
            image_transform=lambda image: torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)
        )

    def get_prompt_builder(self):
        return FakePromptBuilder()

    def encode(self, text):
        return [ord(character) for character in text]

    def tokenize(self, text):
        assert len(text) <= self.max_text_length
        return self.encode(text)

    def decode(self, ids):
        return "".join(map(chr, ids))

    def read_images(self, pixel_values):
        self.reads.append(len(pixel_values))
        colours = pixel_values.view(1, -1, 3, 1)
        return MambaState({"ssm": colours})

    def generate_batch_ids(self, pixel_values, prompts, options, prefix):
        assert pixel_values is None and prefix.batch_size == len(prompts) and not options.do_sample
        self.calls.append((len(prompts), options.max_new_tokens))
        colours = prefix["ssm"][0, :, :, 0].tolist()
        return [
            self.encode(self.answer(colour, self.decode(ids), options.stop_strings))
            for colour, ids in zip(colours, prompts, strict=True)
        ]

    def answer(self, pixels, text, stops):
        colour = next(name for name, value in COLOURS.items() if list(value) == pixels)
        caption = f"a {colour} square on a wall" if "An analysis" in text else f"a {colour} square"
        if not self.staged:
            return f"I see {colour}." if ANALYSIS_PROMPT in text else caption
        said = (
            f"<SUMMARY> s {colour} </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"
            f"<CONCLUSION> {caption} </CONCLUSION>"
        )
        return said[: min((said.index(stop) + len(stop) for stop in stops if stop in said), default=len(said))]
