"""Merge LVIS-Instruct-4V into LLaVA v1.5's rows, for `--dataset.type llava-lvis4v`."""

from dataclasses import dataclass
from pathlib import Path

from cobra.preprocessing.mixes import mix_lvis
from cobra.util import cli


@dataclass
class MixConfig:
    """Flags of scripts/additional-datasets/lvis_instruct_4v.py."""

    root_dir: Path = Path("data")
    """Folder that holds `download/llava-v1.5-instruct/`; what is missing there of the rows is fetched."""


def main(config: MixConfig) -> None:
    """Merge, check that every image is there, and report."""
    print(mix_lvis(config.root_dir))


if __name__ == "__main__":
    cli.run(main, MixConfig)
