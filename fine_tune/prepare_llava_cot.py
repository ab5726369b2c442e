"""Make LLaVA-CoT-100k ready for training: unpack the images, convert and check the rows, report what is in them.

Works on the files in `{dataset_root}/download/llava-cot-100k/`; `scripts/preprocess.py` fetches them.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cobra.preprocessing.llava_cot import prepare
from cobra.util import cli


@dataclass
class PrepareConfig:
    """Flags of fine_tune/prepare_llava_cot.py."""

    dataset_root: Path = Path("data")
    """Folder that holds `download/`; training takes the same as `--dataset.dataset_root_dir`."""


def main(config: PrepareConfig) -> int:
    """Prepare and report; 1 where no usable row came out."""
    report = prepare(config.dataset_root)
    console = Console()
    report.show(console)
    folder = config.dataset_root / "download" / "llava-cot-100k"
    if not report.rows_written:
        console.print(
            f"no row is usable; the reasons are in {folder / 'rejected.jsonl'}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return 1
    console.print(
        f"{report.rows_written:,} rows are ready in {folder / 'llava_cot_100k.json'}", markup=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    cli.run(main, PrepareConfig)
