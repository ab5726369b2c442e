"""Flags of `fine_tune/prepare_llava_cot.py`."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.home_paths import PathText


@dataclass
class PrepareConfig:
    """Fetch LLaVA-CoT-100k and make it ready for training: unpack, convert, check, report; a rerun goes on."""

    dataset_root: Path = Path("data")
    """Folder that holds `download/`; training takes the same as `--dataset.dataset_root_dir`."""
    download: bool = True
    """Fetch what is not there; false uses what is there and needs no network."""
    revision: str = "main"
    """Branch, tag or commit of the published dataset."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; not needed, but it raises the
    hub's limits."""
    keep_parts: bool = True
    """false deletes a part of the image archive once every image in it is unpacked and whole."""
    sources: tuple[str, ...] = ()
    """Keep only rows of these sources, by the first folder of their images: `--sources chartqa,sqa`; empty is all."""
    max_samples: int | None = None
    """Draw at most so many rows, every source in proportion."""
    holdout: int | None = None
    """Rows kept apart from training, by image, in `llava_cot_100k_holdout.json`; by default 1,000, or a hundredth of
    fewer than 20,000 rows."""
    verify: str = "full"
    """How images are checked: `full` decodes every one, `fast` reads their headers, `none` only looks whether they are
    there."""
    max_rejected: float = 0.1
    """Share of the rows above which the exit code is 1; duplicates do not count."""
    llm_backbone_id: str = "mamba-2.8b-zephyr"
    """Language model whose tokenizer counts the tokens of every row for the report."""
    llm_max_length: int = 2048
    """Tokens at which training cuts a row: the report counts the rows that would lose their CONCLUSION."""
    seed: int = 7
    """Of the draws of `max_samples` and `holdout`."""
    num_workers: int | None = None
    """Processes that unpack and decode; by default one for each core."""
