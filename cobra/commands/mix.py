"""Merge LVIS-Instruct-4V or LRV-Instruct into LLaVA v1.5's rows."""

from dataclasses import dataclass
from pathlib import Path

from cobra.commands.base import Command
from cobra.preprocessing.mixes import LVIS_MIX, mix_lrv, mix_lvis
from cobra.util.errors import lookup
from cobra.util.help_text import Usage
from cobra.util.program import command_line


@dataclass
class MixConfig:
    """Merge instructions into LLaVA v1.5's rows, and check that every image is there."""

    root_dir: Path = Path("data")
    """Folder that holds `download/llava-v1.5-instruct/`. What is missing there of the rows of LVIS-Instruct-4V is
    fetched; LRV-Instruct lies there below `lrv/`."""


@dataclass
class NamedMixConfig(MixConfig):
    """Merge LVIS-Instruct-4V or LRV-Instruct into LLaVA v1.5's rows, and check that every image is there."""

    instruct: str = "lvis"
    """Data set to merge: lvis, or lrv, with which all three are merged too where lvis has been."""


def merge_lvis(config: MixConfig) -> None:
    """Merge LVIS-Instruct-4V, and report."""
    print(mix_lvis(config.root_dir))


def merge_lrv(config: MixConfig) -> None:
    """Merge LRV-Instruct, and LVIS-Instruct-4V with it where that has been merged, and report."""
    mixes = mix_lrv(config.root_dir)
    for mix in mixes:
        print(mix)
    if len(mixes) == 1:
        print(
            f"For the mix of all three, run {command_line('mix lvis')} first and this one again: "
            f"{mixes[0].path.with_name(LVIS_MIX)} is not there"
        )


def main(config: NamedMixConfig) -> None:
    """Merge the data set that the flags name."""
    lookup({"lvis": merge_lvis, "lrv": merge_lrv}, config.instruct, "--instruct")(config)


LVIS = Command(merge_lvis, MixConfig, Usage("mix lvis", ("", "--root_dir /scratch/data")))
LRV = Command(merge_lrv, MixConfig, Usage("mix lrv", ("", "--root_dir /scratch/data")))
COMMAND = Command(
    main, NamedMixConfig, Usage("mix", ("lvis", "lrv", "lrv --root_dir /scratch/data"), positional="instruct")
)
