"""Path from published files to training examples: download, preparation, datasets."""

from typing import TYPE_CHECKING

from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.preprocessing.download import convert_to_jpg, download_extract
    from cobra.preprocessing.materialize import get_dataset_and_collator

__all__ = ["convert_to_jpg", "download_extract", "get_dataset_and_collator"]

_DOWNLOAD = dict.fromkeys(("convert_to_jpg", "download_extract"), "cobra.preprocessing.download")
__getattr__, __dir__ = lazy_names(__name__, _DOWNLOAD | {"get_dataset_and_collator": "cobra.preprocessing.materialize"})
