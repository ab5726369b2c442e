"""One training step: this project's against one written Cobra's way, on the same weights and the same batch.

The peer, written here, forms the logits of all positions in fp32, patches included, shifts them by a copy, takes the
mean over the labels of each forward pass, and weights the passes by their counts afterwards. Cobra's own code cannot
run here: it needs CUDA. Both steps use the same model, optimiser and clipping. Peak memory is taken in a process of its
own for each side, as the most resident bytes during the step above those before it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from harness import Row, finish, median_seconds
from harness_memory import ask, can_measure_memory, peak_of, resident
from torch import Tensor

from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.backbones.vision import TowerSpec, VisionBackbone, VisionSpec
from cobra.models.mamba import MambaConfig
from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch
from cobra.training.config import Hyperparameters
from cobra.training.optimizer import clip_gradients
from cobra.training.strategy import TrainStrategy
from cobra.util import cli
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.distributed import World
from cobra.util.errors import UserError

# 378 / 14 is 27, and 27 * 27 patches are those of the 3B model.
PIXELS, PATCH, PATCHES = 378, 14, 729
VOCABULARY = 50_277
SIDES = ("this project", "Cobra's way")
# So large that nothing is clipped: the gradients themselves are compared.
MAX_NORM = 1e9


@dataclass
class TrainStepBenchmark:
    """Measure a training step's time, memory and gradients against one written Cobra's way."""

    text: int = 512
    """Text tokens of a row; 729 patches come on top."""
    rows: int = 2
    """Rows of a forward pass."""
    passes: int = 2
    """Forward passes of a step."""
    width: int = 256
    """Width of the language model."""
    layers: int = 2
    """Blocks of the language model."""
    repeats: int = 3
    """Timed rounds."""
    memory_of: str | None = None
    """Only print the bytes of one side's step, as the benchmark asks of a process of its own."""


def build_model(config: TrainStepBenchmark) -> CobraVLM:
    """Build a model of random weights, the same for the same flags."""
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": 64, "depth": 3, "num_heads": 2}
    spec = VisionSpec({"": TowerSpec("vit_base_patch16_siglip_256", PIXELS, sizes)}, pretrained=False)
    towers = VisionBackbone("benchmark", spec, "resize-naive")
    # Ids are drawn below, so that the tokenizer is of no matter.
    tokenizer = load_tokenizer(TINY_FOLDER, config.text)
    llm = MambaLLMBackbone("mamba-benchmark", MambaConfig(config.width, config.layers, VOCABULARY), tokenizer)
    return CobraVLM("benchmark", towers, llm, "gelu-mlp")


def build_strategy(config: TrainStepBenchmark) -> TrainStrategy:
    """Build this project's strategy; the model, the optimiser and the clipping are the peer's too."""
    vlm = build_model(config)
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(
        epochs=1,
        max_steps=None,
        global_batch_size=config.rows * config.passes,
        per_device_batch_size=config.rows,
        learning_rate=1e-4,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        lr_scheduler_type="linear-warmup+cosine-decay",
        warmup_ratio=0.0,
    )
    strategy = TrainStrategy(vlm, World(0, 1, torch.device("cpu")), values, enable_gradient_checkpointing=False)
    strategy.run_setup()
    return strategy


def make_batches(config: TrainStepBenchmark) -> list[Batch]:
    """Draw rows with an image whose answers, half to nine tenths of the text, are labelled; no two are alike."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(config.passes):
        ids = torch.randint(2, VOCABULARY, (config.rows, config.text), generator=generator)
        labels = ids.clone()
        for row in labels:
            row[: int(torch.randint(config.text // 10, config.text // 2, (), generator=generator))] = IGNORE_INDEX
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids, dtype=torch.bool),
                "labels": labels,
                "pixel_values": torch.randn(config.rows, 3, PIXELS, PIXELS, generator=generator),
                "multimodal_indices": torch.arange(config.rows),
            }
        )
    return batches


def peer_step(strategy: TrainStrategy, batches: list[Batch], rate: float) -> float:
    """Take one step Cobra's way; return the loss."""
    vlm, optimizer = strategy.vlm, strategy.optimizer
    total, count = 0.0, 0
    for batch in batches:
        logits = vlm(**{**batch, "labels": None}).logits
        ignored = batch["labels"].new_full((len(batch["labels"]), PATCHES), IGNORE_INDEX)
        targets = torch.cat([ignored, batch["labels"]], 1)[:, 1:].contiguous()
        shifted = logits[:, :-1].contiguous()
        loss = F.cross_entropy(shifted.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
        labelled = int((targets != IGNORE_INDEX).sum())
        (loss * labelled).backward()
        total, count = total + loss.item() * labelled, count + labelled
    for parameter in vlm.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    clip_gradients(vlm.parameters(), MAX_NORM)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / count


def steps(strategy: TrainStrategy, batches: list[Batch], rate: float) -> dict[str, Callable[[], float]]:
    """Return both sides' steps, which return the loss."""
    return {
        SIDES[0]: lambda: strategy.train_step(batches, rate).loss,
        SIDES[1]: lambda: peer_step(strategy, batches, rate),
    }


def gradient_figures(strategy: TrainStrategy, batches: list[Batch]) -> list[Row]:
    """Compare what both sides hand to the optimiser; the rate is 0, so that the weights stay."""
    seen: list[dict[str, Tensor]] = []

    def keep(*_: object) -> None:
        held = strategy.vlm.named_parameters()
        seen.append({name: value.grad.clone() for name, value in held if value.grad is not None})

    hook = strategy.optimizer.register_step_pre_hook(keep)
    losses = [step() for step in steps(strategy, batches, 0.0).values()]
    hook.remove()
    own, peer = seen
    if own.keys() != peer.keys():
        raise UserError(f"only one side has gradients of {', '.join(sorted(own.keys() ^ peer.keys()))}")
    differences = [((own[name] - peer[name]).abs().max() / peer[name].abs().max()).item() for name in peer]
    return [
        Row("largest difference of a gradient, of its parameter's largest", max(differences), "", "<= 1e-4"),
        Row("difference of the loss, of the loss", abs(losses[0] - losses[1]) / losses[1], "", "<= 1e-5"),
    ]


def step_memory(config: TrainStepBenchmark, side: str) -> tuple[int, int]:
    """Return how many bytes a side's step takes above what was there before it, and the process at its peak."""
    strategy = build_strategy(config)
    # Makes the optimiser's state, and what libraries make once.
    steps(strategy, make_batches(replace(config, rows=1, passes=1, text=16)), 0.0)[side]()
    step = steps(strategy, make_batches(config), 1e-4)[side]
    before = resident()
    peak = peak_of(step)
    return peak - before, peak


def memory_figures(config: TrainStepBenchmark) -> list[Row]:
    """Measure both sides' memory, each in a process of its own."""
    if not can_measure_memory():
        return []
    found = {side: ask(__file__, config, memory_of=side) for side in SIDES}
    (own, own_peak), (peer, peer_peak) = found[SIDES[0]], found[SIDES[1]]
    return [
        Row("peak memory of a step against Cobra's way", own / peer, "x", "<= 0.5"),
        Row("peak memory of a step, this project", own / 2**20, "MiB"),
        Row("peak memory of a step, Cobra's way", peer / 2**20, "MiB"),
        Row("peak of the whole process against Cobra's way", own_peak / peer_peak, "x"),
    ]


def main(config: TrainStepBenchmark) -> None:
    """Measure, and print the rows."""
    if config.memory_of is not None:
        if config.memory_of not in SIDES:
            raise UserError(f"--memory_of {config.memory_of!r} is not a side: {', '.join(SIDES)}")
        print(json.dumps(step_memory(config, config.memory_of)))
        return
    # First, because it forks: the parent is small then.
    memory = memory_figures(config)
    strategy, batches = build_strategy(config), make_batches(config)
    gradients = gradient_figures(strategy, batches)
    seconds = median_seconds(steps(strategy, batches, 1e-4), config.repeats)
    time = [
        Row("time of a step against Cobra's way", seconds[SIDES[0]] / seconds[SIDES[1]], "x", "<= 1"),
        *(Row(f"time of a step, {side}", seconds[side], "s") for side in SIDES),
    ]
    size = f"{config.passes} x {config.rows} rows of {PATCHES} + {config.text}, width {config.width}"
    finish(
        f"train_step: {size}, vocabulary {strategy.vlm.llm_backbone.llm.config.padded_vocab_size:,}",
        time + memory + gradients,
    )


if __name__ == "__main__":
    cli.run(main, TrainStepBenchmark)
