"""Vision-language models."""

from cobra.models.vlms.cobra import STAGES, CobraVLM, VLMOutput, check_stage
from cobra.models.vlms.generation import GenerationOptions

__all__ = ["STAGES", "CobraVLM", "GenerationOptions", "VLMOutput", "check_stage"]
