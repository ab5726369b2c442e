"""Make the packaged files of `cobra-tiny` (tokenizer and baseline weights); `make tiny` calls this."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.cli import run
from cobra.util.lock import hold


@dataclass
class MakeTinyConfig:
    """Flags of `scripts/make_tiny.py`."""

    step: str = "all"
    """Step to run: all, tokenizer (into the package), train (into work_dir) or package (weights into the package)."""
    work_dir: Path = Path("runs/tiny")
    """Folder of the chain's data and runs; complete runs in it are not repeated."""


def main(config: MakeTinyConfig) -> None:
    """Make the files that the flags ask for."""
    from cobra.demo.tiny import make_tiny

    with hold(config.work_dir, "another start makes the files of cobra-tiny"):
        make_tiny(config.work_dir.resolve(), config.step)


if __name__ == "__main__":
    run(main, MakeTinyConfig)
