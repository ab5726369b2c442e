"""Factories of a model's parts, by id."""

from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm import MambaLLMBackbone, build_llm_backbone
from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.backbones.vision import ImageTransform, VisionBackbone
from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.vlms import CobraVLM


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
    """Join backbones by a new projector.

    Raises:
        UserError: The architecture is unknown.
    """
    return CobraVLM(model_id, vision_backbone, llm_backbone, arch_specifier, enable_mixed_precision_training)
