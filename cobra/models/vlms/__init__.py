"""Vision-language models."""

from cobra.models.generation.generate import GenerationOptions
from cobra.models.generation.search import SearchOptions, SearchResult
from cobra.models.vlms.cobra import STAGES, CobraVLM, VLMOutput, as_turn, check_stage

__all__ = [
    "STAGES",
    "CobraVLM",
    "GenerationOptions",
    "SearchOptions",
    "SearchResult",
    "VLMOutput",
    "as_turn",
    "check_stage",
]
