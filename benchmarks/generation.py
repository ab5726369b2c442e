"""Tokens written a second at batch 1 and 16, against transformers' MambaForCausalLM.generate on the same weights.

Both sides read the same prompts, of one length because the peer wants that, and write the same number of tokens
greedily on the CPU; the peer with its own defaults: its cached one-token step, and none of the kernels that there are
for CUDA. Both must write the same tokens. Random weights at their usual scale say one token for ever; these are scaled
up until the text varies. This project's side runs with PyTorch's operations and, where it is installed, with numba's.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import Row, finish, median_seconds
from harness_mamba import build_transformers, own_ops
from PIL import Image

import cobra
from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.mamba import MambaConfig
from cobra.models.mamba.ops import use_op
from cobra.models.vlms import GenerationOptions, as_turn
from cobra.models.vlms.generation_mixin import GenerationMixin
from cobra.util import cli

VOCABULARY = 50_277
BATCHES = (1, 16)
# No token has this id: nothing ends an answer but its limit.
NEVER = -1
ANSWERS = 350

Ids = list[list[int]]


@dataclass
class GenerationBenchmark:
    """Measure tokens a second against transformers."""

    width: int = 256
    """Width of the language model."""
    layers: int = 8
    """Blocks of the language model."""
    prompt: int = 16
    """Tokens of a prompt."""
    tokens: int = 48
    """Tokens written after each."""
    repeats: int = 7
    """Timed rounds."""
    threads: int | None = None
    """Threads of torch; null leaves the machine's number."""


class TextModel(GenerationMixin):
    """A language model that answers without images."""

    def __init__(self, backbone: MambaLLMBackbone) -> None:
        self.llm_backbone = backbone


@torch.no_grad()
def build_model(config: GenerationBenchmark) -> TextModel:
    """Build a model of random weights that writes varied text, the same for the same flags."""
    torch.manual_seed(0)
    # Ids are drawn below, so that the tokenizer is of no matter.
    tokenizer = load_tokenizer(TINY_FOLDER, config.prompt)
    backbone = MambaLLMBackbone("mamba-benchmark", MambaConfig(config.width, config.layers, VOCABULARY), tokenizer)
    backbone.eval().requires_grad_(False)
    backbone.llm.backbone.norm_f.weight.copy_(torch.randn(config.width))
    backbone.llm.backbone.embedding.weight *= 5
    for name, weight in backbone.llm.named_parameters():
        if name.endswith("out_proj.weight"):
            weight.mul_(8)
    return TextModel(backbone)


def build_peer(model: TextModel) -> Callable[[Ids, int], Ids]:
    """Return transformers' way of writing so many tokens after prompts, on the same weights."""
    peer = build_transformers(model.llm_backbone.llm, eos_token_id=None, pad_token_id=0)

    def write(prompts: Ids, tokens: int) -> Ids:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        written = peer.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return written[:, ids.shape[1] :].tolist()

    return write


def make_prompts(config: GenerationBenchmark, count: int, uneven: bool = False) -> Ids:
    """Draw prompts; uneven ones have a quarter to one and three quarters of the length."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, VOCABULARY, (count, 2 * config.prompt), generator=generator).tolist()
    lengths = [config.prompt] * count
    if uneven:
        lengths = [config.prompt // 4 + (7 * row) % (config.prompt * 3 // 2) for row in range(count)]
    return [ids[:length] for ids, length in zip(prompts, lengths, strict=True)]


def crowded_ratios(repeats: int) -> tuple[float, float]:
    """Return how many times as long work takes with two busy processes beside it as alone.

    Returns:
        The ratio of 350 answers of `cobra-tiny`, and of a plain loop: what is left of two cores to any single thread.
    """
    vlm = cobra.load("cobra-tiny", device="cpu")
    prompt = as_turn(vlm, "What is in the picture?")
    picture = vlm.preprocess([Image.linear_gradient("L").resize((48, 48)).convert("RGB")])
    last = 32

    def answer() -> None:
        # Three times: once takes 0.3 s, of which a few time slices more or fewer are a third.
        for start in 3 * [*range(0, ANSWERS, last)]:
            prefix = vlm.read_images(picture).select(torch.zeros(min(last, ANSWERS - start), dtype=torch.long))
            vlm.generate_batch(None, [prompt] * prefix.batch_size, prefix=prefix, max_new_tokens=128)

    def loop() -> None:
        for _ in range(20_000_000):
            pass

    works, ratios = {"answers": answer, "loop": loop}, []
    # In turns, as other work on the machine comes and goes.
    for _ in range(repeats):
        alone = median_seconds(works, 1)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            ratios.append([seconds / alone[name] for name, seconds in median_seconds(works, 1).items()])
        finally:
            for process in busy:
                process.kill()
                process.wait()
    answers, loops = (statistics.median(values) for values in zip(*ratios, strict=True))
    return answers, loops


def main(config: GenerationBenchmark) -> None:
    """Measure, and print the rows."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = build_model(config)
    peer = build_peer(model)

    def own(op: str, prompts: Ids, **options: object) -> Ids:
        fields = {"max_new_tokens": config.tokens, "eos_token_id": NEVER} | options
        with use_op(op):
            return model.generate_batch_ids(None, prompts, GenerationOptions.from_kwargs(fields))

    first, last = BATCHES
    prompts = {batch: make_prompts(config, batch) for batch in BATCHES}
    ops = list(own_ops())
    texts = {(op, batch): own(op, prompts[batch]) for op in ops for batch in BATCHES}
    differing = sum(text != peer(prompts[batch], config.tokens) for (_, batch), text in texts.items())
    sampling = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "seeds": range(last)}
    runs: dict[str, Callable[[], object]] = {
        **{f"{op}, batch {batch}": partial(own, op, prompts[batch]) for op in ops for batch in BATCHES},
        **{f"transformers, batch {batch}": partial(peer, prompts[batch], config.tokens) for batch in BATCHES},
        f"{ops[-1]}, uneven prompts, batch {last}": partial(own, ops[-1], make_prompts(config, last, uneven=True)),
        f"{ops[-1]}, sampled from few, batch {last}": partial(own, ops[-1], prompts[last], **sampling),
    }
    # At least 9 pairs: one alone is 1.5x to 2.3x, by what the cores of two busy processes leave.
    crowded, plain_loop = crowded_ratios(max(config.repeats, 9))
    seconds = median_seconds(runs, config.repeats)
    rate = {name: config.tokens * int(name.rpartition(" ")[2]) / time for name, time in seconds.items()}
    rows = []
    for op in ops:
        # Asked of the fastest operations that are installed.
        asked = op == ops[-1]
        ratios = [rate[f"{op}, batch {batch}"] / rate[f"transformers, batch {batch}"] for batch in BATCHES]
        scaling = rate[f"{op}, batch {last}"] / rate[f"{op}, batch {first}"]
        rows += [
            Row(f"{op}: batch {last} against batch {first}", scaling, "x", ">= 4" if asked else None),
            *(
                Row(f"{op}: batch {batch} against transformers", ratio, "x", ">= 1.6" if asked else None)
                for batch, ratio in zip(BATCHES, ratios, strict=True)
            ),
        ]
    finish(
        f"generation: {config.tokens} tokens after {config.prompt}, width {config.width}, {config.layers} layers, "
        f"{torch.get_num_threads()} threads",
        [
            *rows,
            Row("350 answers of cobra-tiny: beside two busy processes against alone", crowded, "x", "<= 2"),
            Row("a plain loop: beside two busy processes against alone", plain_loop, "x"),
            Row("batches whose tokens differ from transformers'", differing, "", "<= 0"),
            Row(
                "different tokens written", len({token for ids in texts[ops[-1], last] for token in ids}), "", ">= 100"
            ),
            *(Row(f"tokens a second, {name}", value, "1/s") for name, value in rate.items()),
        ],
    )


if __name__ == "__main__":
    cli.run(main, GenerationBenchmark)
