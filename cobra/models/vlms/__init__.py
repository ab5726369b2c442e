"""Vision-language models."""

from cobra.models.vlms.cobra import STAGES, CobraVLM, VLMOutput, as_turn, check_stage
from cobra.models.vlms.generation import GenerationOptions
from cobra.models.vlms.search import SearchOptions, SearchResult

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
