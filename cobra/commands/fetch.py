"""Fetch the weights and data of a run where there is a network, to train and score where there is none."""

from dataclasses import dataclass
from pathlib import Path

from cobra.commands.base import Command
from cobra.doctor.cached import cache_root
from cobra.preprocessing import download_extract
from cobra.preprocessing.published_files import COT_ID, DATASET_REGISTRY
from cobra.util.errors import UserError, check_known
from cobra.util.help_text import Usage
from cobra.util.home_paths import PathText
from cobra.util.program import command_line
from cobra.util.tokens import read_hf_token
from cobra.util.waiting import loading


@dataclass
class FetchConfig:
    """Fetch the weights and data of a run where there is a network, to train and score where there is none."""

    model: PathText = "cobra+3b"
    """Model whose checkpoint, tokenizer and vision towers are fetched: a model id, or a run directory; `none` fetches
    none."""
    datasets: tuple[str, ...] = ()
    """Data sets to fetch too: llava-cot-100k, coco-captions, llava-v1.5-instruct, llava-laion-cc-sbu-558k."""
    bare_llm: bool = False
    """Fetch the language model's own weights too, for training that starts from no checkpoint."""
    root_dir: Path = Path("data")
    """Folder to put `download/` in."""
    hf_token: PathText = ".hf_token"
    """Environment variable or file that holds the hub's token; needed for closed repositories only."""


def main(config: FetchConfig) -> None:
    """Fetch, and say how to go on without a network."""
    check_known(config.datasets, DATASET_REGISTRY, "the data set")
    if config.model in DATASET_REGISTRY:
        command = command_line("fetch", "none", "--datasets", config.model)
        raise UserError(f"{config.model!r} is a data set, and no model: {command}")
    if config.model == "none" and not config.datasets:
        raise UserError("there is nothing to fetch: give a model, or data sets with --datasets")
    token = read_hf_token(config.hf_token)
    if config.model != "none":
        with loading():
            from cobra.models.prefetch import prefetch_model

        print(f"fetching {config.model} into {cache_root()}", flush=True)
        prefetch_model(config.model, token, config.bare_llm)
    for dataset_id in config.datasets:
        print(f"fetching {dataset_id} into {config.root_dir / 'download' / dataset_id}", flush=True)
        download_extract(dataset_id, config.root_dir, token=token)
    print(f"all is there. Where there is no network: export HF_HUB_OFFLINE=1 HF_HUB_CACHE={cache_root()}")
    if COT_ID in config.datasets:
        prepare = command_line("prepare", "--dataset_root", str(config.root_dir), "--download", "false")
        print(f"before training: {prepare}")


COMMAND = Command(
    main,
    FetchConfig,
    Usage(
        "fetch",
        ("cobra+3b", "cobra+3b --datasets llava-cot-100k coco-captions", "none --datasets coco-captions"),
        positional="model",
    ),
)
