"""Time of answering images: batches against one by one, and images read once for two passes against once for each.

The peers are this project's own generation used plainly: an image at a time, and pixels with every prompt. Both sides
write the same tokens, but for rounding; how many answers differ is stated. Weights are random, so that no answer ends
before its limit. What reading images once saves depends on what else there is to do: of a model as wide as this one,
with the 3B model's vocabulary, the two passes take 1.34 times as long with images read twice, and not 1.5 times.
"""

from dataclasses import dataclass

import torch
from harness import Row, finish, median_seconds

from cobra.evaluation.responses.protocol import ANALYSIS_PROMPT, DEFAULT_PROMPT, second_prompt
from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.backbones.vision import TowerSpec, VisionBackbone, VisionSpec
from cobra.models.mamba import MambaConfig
from cobra.models.vlms import CobraVLM, GenerationOptions, as_turn
from cobra.util import cli

# 378 / 14 is 27, and 27 * 27 patches are those of the 3B model.
PIXELS, PATCH, PATCHES = 378, 14, 729
# At this width 50,277 tokens would be three quarters of the numbers of the model; of the 3B model they are a twentieth.
VOCABULARY = 4_096
# No token has this id: nothing ends an answer but its limit.
NEVER = -1


@dataclass
class EvaluationBenchmark:
    """Measure what batches and images read once save when a model answers."""

    images: int = 16
    """Images of a batch."""
    two_pass_images: int = 4
    """Images of a batch that is answered in two passes."""
    alone: int = 2
    """Images that are answered one by one."""
    new_tokens: int = 256
    """Tokens of an answer, for batches against one by one: as many as a scratchpad's first pass may write."""
    short_tokens: int = 16
    """Tokens of each of the two passes."""
    width: int = 256
    """Width of the language model."""
    layers: int = 8
    """Blocks of the language model."""
    repeats: int = 3
    """Timed rounds."""


def build_model(config: EvaluationBenchmark) -> CobraVLM:
    """Build a model of random weights with the patches of the 3B model."""
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": 128, "depth": 3, "num_heads": 2}
    spec = VisionSpec({"": TowerSpec("vit_base_patch16_siglip_256", PIXELS, sizes)}, pretrained=False)
    towers = VisionBackbone("benchmark", spec, "resize-naive")
    llm = MambaLLMBackbone(
        "mamba-benchmark", MambaConfig(config.width, config.layers, VOCABULARY), load_tokenizer(TINY_FOLDER, 2048)
    )
    vlm = CobraVLM("benchmark", towers, llm, "gelu-mlp")
    vlm.requires_grad_(False)
    return vlm.eval()


Answers = list[list[int]]


def draw_pixels(count: int) -> torch.Tensor:
    """Draw pixels of images, each of another brightness."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, PIXELS, PIXELS, generator=generator) + torch.linspace(-2, 2, count).view(-1, 1, 1, 1)


def options(tokens: int) -> GenerationOptions:
    """Return the options of an answer of so many tokens."""
    return GenerationOptions(max_new_tokens=tokens, eos_token_id=NEVER)


def differing(one: Answers, other: Answers) -> int:
    """Return how many answers differ."""
    return sum(own != others for own, others in zip(one, other, strict=True))


def batch_figures(config: EvaluationBenchmark, vlm: CobraVLM) -> list[Row]:
    """Compare a batch with its images one by one; both read each image once."""
    pixels, prompt = draw_pixels(config.images), vlm.tokenize(as_turn(vlm, DEFAULT_PROMPT))

    def answer(part: slice) -> Answers:
        own = pixels[part]
        prompts = [prompt] * len(own)
        return vlm.generate_batch_ids(None, prompts, options(config.new_tokens), vlm.read_images(own))

    def one_by_one() -> Answers:
        return [answer(slice(row, row + 1))[0] for row in range(config.alone)]

    batch = slice(0, config.images)
    differences = differing(answer(batch)[: config.alone], one_by_one())
    seconds = median_seconds({"batch": lambda: answer(batch), "one by one": one_by_one}, config.repeats)
    rates = {"batch": config.images / seconds["batch"], "one by one": config.alone / seconds["one by one"]}
    ratio = rates["batch"] / rates["one by one"]
    return [
        Row(f"captions/s in a batch of {config.images} against one by one", ratio, "x", ">= 3"),
        *(Row(f"captions/s, {name}", rate, "1/s") for name, rate in rates.items()),
        Row(f"answers that differ, of {config.alone}", differences, ""),
    ]


def prefix_figures(config: EvaluationBenchmark, vlm: CobraVLM) -> list[Row]:
    """Compare a scratchpad's two passes over images that are read once with passes that each read them."""
    pixels = draw_pixels(config.two_pass_images)
    first = [vlm.tokenize(as_turn(vlm, ANALYSIS_PROMPT))] * config.two_pass_images

    def second(analyses: Answers) -> list[list[int]]:
        turns = [as_turn(vlm, second_prompt(vlm.decode(ids), DEFAULT_PROMPT)) for ids in analyses]
        return [vlm.tokenize(turn) for turn in turns]

    def reused() -> Answers:
        states = vlm.read_images(pixels)
        analyses = vlm.generate_batch_ids(None, first, options(config.short_tokens), states)
        return vlm.generate_batch_ids(None, second(analyses), options(config.short_tokens), states)

    def read_again() -> Answers:
        analyses = vlm.generate_batch_ids(pixels, first, options(config.short_tokens))
        return vlm.generate_batch_ids(pixels, second(analyses), options(config.short_tokens))

    differences = differing(reused(), read_again())
    seconds = median_seconds({"read once": reused, "read twice": read_again}, config.repeats)
    ratio = seconds["read twice"] / seconds["read once"]
    return [
        Row("time of two passes, images read twice against once", ratio, "x", ">= 1.5"),
        *(Row(f"time of two passes, images {name}", value, "s") for name, value in seconds.items()),
        Row(f"answers of two passes that differ, of {config.two_pass_images}", differences, ""),
    ]


def main(config: EvaluationBenchmark) -> None:
    """Measure, and print the rows."""
    vlm = build_model(config)
    size = f"{PATCHES} patches, width {config.width}, {config.layers} layers, vocabulary {VOCABULARY:,}"
    rows = batch_figures(config, vlm) + prefix_figures(config, vlm)
    finish(f"evaluation: {config.new_tokens} tokens one by one, 2 x {config.short_tokens} in two passes, {size}", rows)


if __name__ == "__main__":
    cli.run(main, EvaluationBenchmark)
