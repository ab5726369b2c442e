"""Checks and warnings about the rows, made before the first step and not met hours later."""

import os
from collections.abc import Callable

from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.datasets.image_presence import look_for_images
from cobra.training.config import PretrainConfig
from cobra.util.conversation import SPECIAL_TOKENS
from cobra.util.distributed import World
from cobra.util.errors import SharedError

RowDataset = AlignDataset | FinetuneDataset


def check_images(
    dataset: RowDataset, config: PretrainConfig, has_state: bool, world: World, say: Callable[[str], None]
) -> None:
    """Look whether the image of every row is there, once on each machine; every process has to call it.

    The rows of a run that has begun (`has_state`) stay as they are.

    Raises:
        SharedError: Images are missing.
    """
    rows, names = dataset.examples, ""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        search = look_for_images(rows, dataset.image_dir)
        if search.late:
            say(
                f"{search.looked_for:,} images were looked for in {dataset.image_dir}, which is slow; those of other "
                "rows are looked for as these come"
            )
        names = search.name_missing(rows) if search.missing else ""
    named = next(filter(None, world.gather(names)), None)
    if named is None:
        return
    named = f"{named} name an image that is not in {dataset.image_dir}"
    if config.dataset.on_bad_image == "skip":
        say(f"warning: {named}: they teach nothing (--dataset.on_bad_image skip)")
        return
    known = config.dataset.published(config.stage) is not None
    bring = f"Put the images there{f' ({config.dataset.remedy(config.stage)})' if known else ''}"
    out = "" if has_state else ", take the rows out"
    raise SharedError(f"{named}. {bring}{out}, or go on without them: --dataset.on_bad_image skip")


def tell_markers(dataset: RowDataset, say: Callable[[str], None]) -> None:
    """Tell of texts that hold special tokens, or what other tools mark turns with; they are trained on as they are."""
    rows = dataset.examples
    special, other = int(rows.special_tokens.sum()), int(rows.other_markers.sum())
    if special:
        say(
            f"warning: the texts of {special:,} of {len(rows):,} rows hold {' or '.join(SPECIAL_TOKENS)}, which the "
            "tokenizer reads as a token of its own: in an answer the end of answers is learned in its middle. "
            f"Take them out: sed -i 's/{'//g; s/'.join(SPECIAL_TOKENS)}//g' {rows.annotation_file}"
        )
    if other:
        say(
            f"the texts of {other:,} of {len(rows):,} rows hold what other tools mark turns with, such as </s>, "
            "<|im_end|> or [INST]: it is ordinary text here and is learned as such; take it out if it was left over"
        )


def tell_rows(dataset: RowDataset, say: Callable[[str], None]) -> None:
    """Tell of rows that are taken though something in them is not trained on, and of those that teach nothing."""
    lines = dataset.examples.remark_lines()
    if isinstance(dataset, FinetuneDataset) and dataset.unlabelled:
        lines.append(
            f"{dataset.unlabelled:,} of {len(dataset):,} rows teach nothing: their first question alone fills the "
            f"{dataset.tokenizer.model_max_length:,} tokens that rows are cut at; raise --model.llm_max_length, or "
            "leave them out with --dataset.truncation drop"
        )
    for line in lines:
        say(f"warning: {dataset.annotation_file}: {line}")
