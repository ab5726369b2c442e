"""Flags of `fine_tune/prepare_llava_cot.py`."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.home_paths import PathText


@dataclass
class PrepareConfig:
    """Fetch LLaVA-CoT-100k and prepare it for training: unpack, convert, check, report; a rerun resumes."""

    dataset_root: Path = Path("data")
    """Folder that holds `download/`; training takes the same as `--dataset.dataset_root_dir`."""
    download: bool = True
    """Fetch missing files; false uses those that are there and needs no network."""
    revision: str = "main"
    """Branch, tag or commit of the published dataset."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; not needed, but it raises the
    hub's limits."""
    keep_parts: bool = True
    """Keep the parts of the image archive; false deletes each once every image in it is unpacked and whole."""
    sources: tuple[str, ...] = ()
    """Keep only rows of these sources, by the first folder of their images: `--sources chartqa,sqa`; empty is all."""
    max_samples: int | None = None
    """Number of rows to draw at most, every source in proportion; null takes all."""
    holdout: int | None = None
    """Number of rows held out from training, by image, in `llava_cot_100k_holdout.json`; by default 1,000, or a
    hundredth of fewer than 20,000 rows."""
    verify: str = "full"
    """Check of the images: `full` decodes every one, `fast` reads their headers, `none` only looks for the files."""
    max_rejected: float = 0.1
    """Share of rejected rows above which the exit code is 1; duplicates do not count."""
    llm_backbone_id: str = "mamba-2.8b-zephyr"
    """Language model whose tokenizer counts the tokens of every row for the report."""
    llm_max_length: int = 2048
    """Number of tokens at which training cuts a row; the report counts the rows that would lose their CONCLUSION."""
    seed: int = 7
    """Seed for drawing `max_samples` and `holdout`."""
    num_workers: int | None = None
    """Number of processes that unpack and decode; by default one for each core."""
