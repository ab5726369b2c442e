"""A run directory as training with adapters leaves it, for tests that need one without training."""

import json
from pathlib import Path

import torch
from scratch import scratch_fields

from cobra.models.checkpoint import ADAPTER, read_checkpoint
from cobra.models.load import build_vlm
from cobra.models.run_folder import LATEST, PROVENANCE
from cobra.models.vlms import CobraVLM
from cobra.training.config import LoraConfig
from cobra.training.lora import adapter_state, apply_lora
from cobra.util.files import sha256_file

# Those of cobra-tiny, which the package has weights for.
TINY_IDS = {"vision_backbone_id": "dinosiglip-vit-tiny-48px", "llm_backbone_id": "mamba-0.5m-zephyr"}
CONFIG = LoraConfig(rank=3, alpha=5)
FIELDS = (
    "model_id",
    "vision_backbone_id",
    "image_resize_strategy",
    "llm_backbone_id",
    "llm_max_length",
    "arch_specifier",
)


def adapted_vlm(start: Path | None, config: LoraConfig = CONFIG, stage: str = "finetune") -> CobraVLM:
    """Build cobra-tiny from a checkpoint, or from its bare backbones, with adapters that do something."""
    checkpoint = {} if start is None else read_checkpoint(start)
    vlm = build_vlm(scratch_fields(**TINY_IDS), checkpoint)
    vlm.load_modules(checkpoint, str(start))
    vlm.freeze_backbones(stage)
    # As training does for a start whose towers are the backbone's own.
    vlm.altered_module_keys.discard("vision_backbone")
    apply_lora(vlm, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return vlm.eval()


def write_lora_run(run_dir: Path, vlm: CobraVLM, start: Path | None, given: str | None = None) -> Path:
    """Write the run directory of an adapted model."""
    modules = {key: getattr(vlm, key).state_dict() for key in vlm.checkpoint_modules}
    (run_dir / LATEST).parent.mkdir(parents=True)
    torch.save({"model": modules | {ADAPTER: adapter_state(vlm)}}, run_dir / LATEST)
    fields = scratch_fields(**TINY_IDS)
    config = {
        "model": {name: fields[name] for name in FIELDS},
        "dataset": {"dataset_id": "custom", "dataset_root_dir": "/home/somebody/data"},
        "hf_token": "/home/somebody/token",
        "run_id": "adapted",
        "stage": "finetune",
        "seed": 7,
        "pretrained_checkpoint": given,
        "lora": vars(CONFIG) | {"target_modules": list(CONFIG.target_modules)},
    }
    (run_dir / "config.json").write_text(json.dumps(config))
    weights = {"path": start and str(start), "sha256": start and sha256_file(start), "modules": []}
    data = {"path": "/home/somebody/data/rows.json", "sha256": "5" * 64, "rows": 1234}
    record = {"command": ["pretrain.py", "/home/somebody"], "data": data, "weights": weights}
    (run_dir / PROVENANCE).write_text(json.dumps(record))
    return run_dir
