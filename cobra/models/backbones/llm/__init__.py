"""Language models, their tokenizers and prompt formats."""

from typing import TYPE_CHECKING

from cobra.models.backbones.llm.specs import LLM_BACKBONES, LLMSpec, register_llm_backbone
from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.models.backbones.llm.backbone import MambaLLMBackbone, build_llm_backbone

__all__ = ["LLM_BACKBONES", "LLMSpec", "MambaLLMBackbone", "build_llm_backbone", "register_llm_backbone"]

__getattr__, __dir__ = lazy_names(
    __name__, dict.fromkeys(("MambaLLMBackbone", "build_llm_backbone"), f"{__name__}.backbone")
)
