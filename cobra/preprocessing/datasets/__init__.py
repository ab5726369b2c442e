"""Rows as training examples, and the stages of LLaVA-CoT's answers."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.preprocessing.datasets.datasets import AlignDataset, FinetuneDataset
    from cobra.reasoning.trace import ReasoningTrace, extract_reasoning_trace

__all__ = ["AlignDataset", "FinetuneDataset", "ReasoningTrace", "extract_reasoning_trace"]

_DATASETS = dict.fromkeys(__all__[:2], "cobra.preprocessing.datasets.datasets")
__getattr__, __dir__ = lazy_names(__name__, _DATASETS | dict.fromkeys(__all__[2:], "cobra.reasoning.trace"))
