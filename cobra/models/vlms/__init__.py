"""Vision-language models."""

from cobra.models.vlms.cobra import STAGES, CobraVLM, VLMOutput, check_stage
from cobra.models.vlms.generation import GenerationOptions
from cobra.models.vlms.search import SearchOptions, SearchResult

__all__ = ["STAGES", "CobraVLM", "GenerationOptions", "SearchOptions", "SearchResult", "VLMOutput", "check_stage"]
