"""Path from published files to training examples: download, preparation, datasets."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.preprocessing.download import convert_to_jpg, download_extract
    from cobra.preprocessing.materialize import get_dataset_and_collator

__all__ = ["convert_to_jpg", "download_extract", "get_dataset_and_collator"]

__getattr__ = lazy_names(
    __name__,
    {
        "convert_to_jpg": "cobra.preprocessing.download",
        "download_extract": "cobra.preprocessing.download",
        "get_dataset_and_collator": "cobra.preprocessing.materialize",
    },
)
