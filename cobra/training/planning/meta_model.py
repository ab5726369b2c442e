"""Model of a run on the meta device: every size is real, and no weights are fetched."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cobra.conf import ModelConfig
from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.llm.backbone import read_mamba_config
from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.backbones.vision import VisionBackbone
from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.hub import fetch
from cobra.models.load import cast
from cobra.models.mamba import MambaConfig
from cobra.models.vlms import CobraVLM
from cobra.training.config import LoraConfig
from cobra.training.lora import apply_lora, is_adapter

_MAMBA_3B = MambaConfig(d_model=2560, n_layer=64, vocab_size=50277)

# As in the config.json of the registered repositories, so that a plan needs no network.
PUBLISHED_SIZES = {
    "state-spaces/mamba-2.8b-slimpj": _MAMBA_3B,
    "state-spaces/mamba-2.8b": _MAMBA_3B,
    "state-spaces/mamba-1.4b": MambaConfig(d_model=2048, n_layer=48, vocab_size=50277),
    "xiuyul/mamba-2.8b-zephyr": _MAMBA_3B,
}


def build_meta_model(
    model: ModelConfig, stage: str, lora: LoraConfig, brings_towers: bool = False, mixed_precision: bool = True
) -> CobraVLM:
    """Build a model on the meta device, frozen and in the dtypes in which its stage trains it.

    With `brings_towers` the run starts from a checkpoint with vision towers of its own, which every later one must hold
    again; with `mixed_precision` what is frozen and not saved is held in bf16.

    Raises:
        UserError: An id or the architecture is unknown, or the sizes of a language model that is not among the
            published ones cannot be read.
    """
    vision, llm = vision_spec(model.vision_backbone_id), llm_spec(model.llm_backbone_id)
    config = _llm_config(llm.source)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with torch.device("meta"):
        towers = VisionBackbone(model.vision_backbone_id, vision, model.image_resize_strategy, load_weights=False)
        language = MambaLLMBackbone(model.llm_backbone_id, config, tokenizer)
        vlm = CobraVLM(model.model_id, towers, language, model.arch_specifier)
    if brings_towers or not vision.pretrained:
        vlm.altered_module_keys.add("vision_backbone")
    if not llm.pretrained:
        vlm.altered_module_keys.add("llm_backbone")
    vlm.freeze_backbones(stage)
    if lora.rank:
        with torch.device("meta"):
            apply_lora(vlm, lora)
    for key, module in vlm.named_children():
        kept = key in vlm.checkpoint_modules
        cast(module, torch.bfloat16 if mixed_precision and not kept else torch.float32)
    for name, parameter in vlm.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
    return vlm


def _llm_config(source: str | Path) -> MambaConfig:
    """Return a language model's sizes, the published ones where they are."""
    if isinstance(source, Path):
        return read_mamba_config(source / "config.json")
    return PUBLISHED_SIZES.get(source) or read_mamba_config(fetch(source, "config.json"))
