"""Language models, their tokenizers and prompt formats."""

from cobra.models.backbones.llm.backbone import MambaLLMBackbone, build_llm_backbone
from cobra.models.backbones.llm.specs import LLM_BACKBONES, LLMSpec, register_llm_backbone

__all__ = ["LLM_BACKBONES", "LLMSpec", "MambaLLMBackbone", "build_llm_backbone", "register_llm_backbone"]
