"""Merge LRV-Instruct into LLaVA v1.5's rows, for `--dataset.type llava-lrv` and `llava-lvis4v-lrv`."""

from dataclasses import dataclass
from pathlib import Path

from cobra.preprocessing.mixes import LVIS_MIX, mix_lrv
from cobra.util import cli


@dataclass
class MixConfig:
    """Flags of scripts/additional-datasets/lrv_instruct.py."""

    root_dir: Path = Path("data")
    """Folder that holds `download/llava-v1.5-instruct/`, with LRV-Instruct below `lrv/`."""


def main(config: MixConfig) -> None:
    """Merge, check that every image is there, and report."""
    mixes = mix_lrv(config.root_dir)
    for mix in mixes:
        print(mix)
    if len(mixes) == 1:
        print(
            "For the mix of all three, run scripts/additional-datasets/lvis_instruct_4v.py first and this one again: "
            f"{mixes[0].path.with_name(LVIS_MIX)} is not there"
        )


if __name__ == "__main__":
    cli.run(main, MixConfig)
