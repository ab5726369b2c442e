"""A model that answers by rule, with the interface that the benchmark uses."""

import torch

from cobra.evaluation.protocol import ANALYSIS_PROMPT

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
    """Sees the colour of an image; writes four stages if `staged`; records the calls it gets."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, name, staged=False, is_stock=True):
        self.model_id = name
        self.checkpoint_sha256 = (name.encode().hex() + "0" * 64)[:64]
        self.is_stock = is_stock
        self.staged = staged
        self.calls = []

    def get_prompt_builder(self):
        return FakePromptBuilder()

    def preprocess(self, images):
        return torch.stack([torch.tensor(image.getpixel((0, 0)), dtype=torch.float32) for image in images])

    def generate_batch(self, pixel_values, texts, max_new_tokens, do_sample):
        assert len(pixel_values) == len(texts) and not do_sample
        self.calls.append((len(texts), max_new_tokens))
        return [self.answer(pixels, text) for pixels, text in zip(pixel_values.tolist(), texts, strict=True)]

    def answer(self, pixels, text):
        colour = next(name for name, value in COLOURS.items() if list(value) == pixels)
        caption = f"a {colour} square on a wall" if "An analysis" in text else f"a {colour} square"
        if not self.staged:
            return f"I see {colour}." if ANALYSIS_PROMPT in text else caption
        return (
            f"<SUMMARY> s {colour} </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"
            f"<CONCLUSION> {caption} </CONCLUSION>"
        )
