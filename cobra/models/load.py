"""Build models and their parts by id, and load trained ones from a run directory, a checkpoint file, or by name."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from cobra.models import quantized
from cobra.models.backbones.llm import MambaLLMBackbone, build_llm_backbone
from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.backbones.vision import ImageTransform, VisionBackbone
from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.checkpoint import Checkpoint, read_whole_model
from cobra.models.mamba.mixer import fp32_parameters
from cobra.models.quantized import check_quantize
from cobra.models.run_folder import find_checkpoint
from cobra.models.vlms import CobraVLM
from cobra.util.torch_utils import resolve_device, resolve_dtype


def get_vision_backbone_and_transform(
    vision_backbone_id: str, image_resize_strategy: str, inference_mode: bool = False
) -> tuple[VisionBackbone, ImageTransform]:
    """Build a vision backbone with its pretrained weights, and its image transform.

    Args:
        vision_backbone_id: A registered id.
        image_resize_strategy: `resize-naive`, `resize-crop` or `letterbox`.
        inference_mode: Leave random weights, because a checkpoint will bring them.

    Raises:
        UserError: The id or the strategy is unknown (the known ones are listed), or weights cannot be fetched.
    """
    spec = vision_spec(vision_backbone_id)
    backbone = VisionBackbone(vision_backbone_id, spec, image_resize_strategy, load_weights=not inference_mode)
    return backbone, backbone.image_transform


def get_llm_backbone_and_tokenizer(
    llm_backbone_id: str, llm_max_length: int = 2048, hf_token: str | None = None, inference_mode: bool = False
) -> tuple[MambaLLMBackbone, PreTrainedTokenizerBase]:
    """Build a language model with its pretrained weights, and its tokenizer.

    Args:
        llm_backbone_id: A registered id.
        llm_max_length: Tokens at which text is cut, on the right.
        hf_token: Access token of the hub, for closed repositories.
        inference_mode: Leave random weights, because a checkpoint will bring them.

    Raises:
        UserError: The id is unknown (the known ones are listed), or files cannot be fetched.
    """
    spec = llm_spec(llm_backbone_id)
    backbone = build_llm_backbone(llm_backbone_id, spec, llm_max_length, hf_token, load_weights=not inference_mode)
    return backbone, backbone.tokenizer


def get_vlm(
    model_id: str,
    arch_specifier: str,
    vision_backbone: VisionBackbone,
    llm_backbone: MambaLLMBackbone,
    enable_mixed_precision_training: bool = True,
) -> CobraVLM:
    """Join backbones by a new projector; raise a UserError where its architecture is unknown."""
    return CobraVLM(model_id, vision_backbone, llm_backbone, arch_specifier, enable_mixed_precision_training)


def build_vlm(fields: dict[str, Any], checkpoint: Checkpoint, hf_token: str | None = None) -> CobraVLM:
    """Build a model of some `model_fields`, with pretrained backbones where a checkpoint, not loaded yet, has none."""
    vision_backbone, _ = get_vision_backbone_and_transform(
        fields["vision_backbone_id"], fields["image_resize_strategy"], inference_mode="vision_backbone" in checkpoint
    )
    llm_backbone, _ = get_llm_backbone_and_tokenizer(
        fields["llm_backbone_id"], fields["llm_max_length"], hf_token, inference_mode="llm_backbone" in checkpoint
    )
    vlm = get_vlm(fields["model_id"], fields["arch_specifier"], vision_backbone, llm_backbone)
    # Random values are nowhere but in this process: a checkpoint must hold them even where they stay frozen.
    if not vision_spec(fields["vision_backbone_id"]).pretrained:
        vlm.altered_module_keys.add("vision_backbone")
    if not llm_spec(fields["llm_backbone_id"]).pretrained:
        vlm.altered_module_keys.add("llm_backbone")
    return vlm


def load(
    model_id_or_path: str | Path,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> CobraVLM:
    """Load a trained model for inference.

    Args:
        model_id_or_path: A run directory, a checkpoint file in one, or a model's id or name (`cobra-tiny` needs no
            network).
        hf_token: Access token of the hub, for closed repositories.
        cache_dir: The hub's cache.
        device: `cuda`, `cuda:N`, `mps` or `cpu`; None is the best at hand.
        dtype: `fp32`, `bf16` or `fp16`; None is fp32 on a CPU. Decay rates, skip weights and step biases of Mamba stay
            in fp32 always.
        quantize: `nf4` or `int8` keeps the large matrices of the language model so, in a quarter or half of the memory
            of bf16; None keeps all as it is.

    Raises:
        UserError: The model cannot be found, read or built.
    """
    target = resolve_device(device)
    check_quantize(quantize, "quantize")
    source = find_checkpoint(model_id_or_path, hf_token, cache_dir)
    checkpoint = read_whole_model(source.path)
    vlm = build_vlm(source.fields, checkpoint, hf_token)
    vlm.load_modules(checkpoint, source.path)
    vlm.is_stock, vlm.checkpoint_path = source.is_stock, source.path
    vlm.requires_grad_(False).eval()
    if quantize is not None:
        quantized.quantize(vlm.llm_backbone, quantize)
    cast(vlm, resolve_dtype(dtype, target))
    return vlm.to(target)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's parameters in place, but for those that must stay in fp32: as mixers say, and of adapters."""
    kept = fp32_parameters(module)
    for name, parameter in module.named_parameters():
        # An adapted layer lies in its adapter, as `base_layer`.
        if name.replace(".base_layer.", ".") not in kept and ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    for layer in quantized.quantized_layers(module):
        layer.dtype = dtype
