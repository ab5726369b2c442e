"""A small model at random initial values, for tests that need a model but no particular one."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from cobra.conf import ModelConfig
from cobra.models.load import build_vlm
from cobra.models.vlms import SEARCH_SAMPLING, CobraVLM, SearchOptions

# The ids that leave cobra-tiny's parts at random values.
SCRATCH_IDS = {"vision_backbone_id": "dinosiglip-vit-tiny-48px-init", "llm_backbone_id": "mamba-0.5m-init-zephyr"}


def scratch_fields(**changes: object) -> dict:
    """The entries of a run's configuration that build the small model."""
    return vars(ModelConfig.get_choice_class("cobra-tiny")()) | SCRATCH_IDS | changes


def scratch_vlm(seed: int = 0, **changes: object) -> CobraVLM:
    """Build the small model, in evaluation mode and the same for the same seed."""
    torch.manual_seed(seed)
    vlm = build_vlm(scratch_fields(**changes), {})
    return vlm.eval()


def scratch_run(folder: Path, run_id: str, *more: str) -> list[str]:
    """Flags of a run that trains the small model on a folder's `rows.json` and writes to its `runs`."""
    return [
        *("--model.type", "cobra-tiny", "--device", "cpu"),
        *(text for name, value in SCRATCH_IDS.items() for text in (f"--model.{name}", value)),
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(folder)),
        *("--run_root_dir", str(folder / "runs"), "--run_id", run_id, *more),
    ]


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A picture of coarse noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)


@torch.no_grad()
def enliven(vlm: CobraVLM) -> CobraVLM:
    """Make the model's answers varied and dependent on its images; at initial values it repeats a single token."""
    llm = vlm.llm_backbone.llm
    generator = torch.Generator().manual_seed(0)
    llm.backbone.norm_f.weight.copy_(torch.randn(llm.config.d_model, generator=generator))
    llm.backbone.embedding.weight *= 5
    for block in llm.backbone.layers:
        block.mixer.out_proj.weight *= 8
    list(vlm.projector.parameters())[-2].mul_(20)
    return vlm


def search_options(kind="none", beams=4, **fields):
    """The options of a search, those of its sampling among the fields."""
    names = {"max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"} & set(fields)
    sampling = replace(SEARCH_SAMPLING, **{name: fields.pop(name) for name in names})
    return SearchOptions(kind, beams, sampling, **fields)
