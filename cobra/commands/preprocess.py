"""Fetch a dataset and unpack it into `{root_dir}/download/{dataset_id}/`; a rerun resumes where it stopped."""

from dataclasses import dataclass
from pathlib import Path

from cobra import preprocessing
from cobra.commands.base import Command
from cobra.preprocessing.published_files import prepare_command
from cobra.util.help_text import Usage
from cobra.util.home_paths import PathText
from cobra.util.tokens import read_hf_token


@dataclass
class PreprocessConfig:
    """Fetch a data set and unpack it; a rerun resumes where it stopped."""

    dataset_id: str = "llava-v1.5-instruct"
    """Dataset to fetch: llava-laion-cc-sbu-558k, llava-v1.5-instruct, llava-cot-100k or coco-captions."""
    root_dir: Path = Path("data")
    """Folder to put `download/` in."""
    revision: str = "main"
    """Branch, tag or commit on the hub, for llava-cot-100k."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; not needed, but it raises the
    hub's limits."""


def main(config: PreprocessConfig) -> None:
    """Fetch, unpack and, where the annotations ask for it, convert."""
    preprocessing.download_extract(config.dataset_id, config.root_dir, config.revision, read_hf_token(config.hf_token))
    folder = config.root_dir / "download" / config.dataset_id
    print(f"{config.dataset_id} is in {folder}")
    if config.dataset_id == "llava-v1.5-instruct":
        preprocessing.convert_to_jpg(folder / "ocr_vqa" / "images")
    if config.dataset_id == "llava-cot-100k":
        print(f"Prepare it for training: {prepare_command(config.root_dir)}")


COMMAND = Command(
    main,
    PreprocessConfig,
    Usage(
        "preprocess",
        ("coco-captions", "llava-v1.5-instruct", "coco-captions --root_dir /scratch/data"),
        positional="dataset_id",
    ),
)
