"""LLaVA-CoT-100k (arXiv 2411.10440): from the published files to rows that training reads."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.preprocessing.llava_cot.config import PrepareConfig
    from cobra.preprocessing.llava_cot.preparation import prepare

__all__ = ["PrepareConfig", "prepare"]

# Worker processes import a single module of this package, and should not wait for the others.
__getattr__, __dir__ = lazy_names(
    __name__,
    {"PrepareConfig": "cobra.preprocessing.llava_cot.config", "prepare": "cobra.preprocessing.llava_cot.preparation"},
)
