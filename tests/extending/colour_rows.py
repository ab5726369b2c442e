"""A data set of one's own in LLaVA's form, for `--dataset.type colours`."""

from dataclasses import dataclass
from pathlib import Path

from cobra.conf import DatasetConfig
from cobra.conf.datasets import Publication


@DatasetConfig.register_subclass("colours")
@dataclass
class ColoursConfig(DatasetConfig):
    """Squares of one colour, and a question about it."""

    dataset_id: str = "colours"
    align_stage_components: tuple[Path, Path] = (Path("captions.json"), Path("images"))
    finetune_stage_components: tuple[Path, Path] = (Path("rows.json"), Path("images"))
    published_finetune = Publication(rows=4, remedy="Make it: python make_colours.py --to {root}")
