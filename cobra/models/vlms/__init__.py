"""Vision-language models, and the options of their answers."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.models.generation.options import SEARCH_SAMPLING, GenerationOptions, SearchOptions
    from cobra.models.generation.search import SearchResult
    from cobra.models.vlms.asking_mixin import as_turn
    from cobra.models.vlms.cobra import STAGES, CobraVLM, VLMOutput, check_stage

__all__ = [
    "SEARCH_SAMPLING",
    "STAGES",
    "CobraVLM",
    "GenerationOptions",
    "SearchOptions",
    "SearchResult",
    "VLMOutput",
    "as_turn",
    "check_stage",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(__all__, "cobra.models.vlms.cobra"),
        **dict.fromkeys(("SEARCH_SAMPLING", "GenerationOptions", "SearchOptions"), "cobra.models.generation.options"),
        "SearchResult": "cobra.models.generation.search",
        "as_turn": "cobra.models.vlms.asking_mixin",
    },
)
