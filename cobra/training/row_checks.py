"""Checks and warnings about the rows, made before the first step and not met hours later."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.datasets.arrow_rows import Rows
from cobra.preprocessing.datasets.image_presence import folder_with, look_for_images, name_rows
from cobra.training.config import PretrainConfig, stage_prefix
from cobra.util.conversation import SPECIAL_TOKENS
from cobra.util.distributed import World
from cobra.util.errors import SharedError
from cobra.util.numbers import counted

RowDataset = AlignDataset | FinetuneDataset


def check_images(
    dataset: RowDataset, config: PretrainConfig, has_state: bool, world: World, say: Callable[[str], None]
) -> None:
    """Look whether the image of every row is there and in its folder, once on each machine, by every process together.

    The rows of a run that has begun (`has_state`) stay as they are.

    Raises:
        SharedError: Images are missing, or lie elsewhere.
    """
    rows, problem, remedy = dataset.examples, "", ""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        search = look_for_images(rows, dataset.images)
        if search.late:
            say(
                f"looking for images in {dataset.image_dir} is slow: {counted(search.looked_for, 'image')} so far; "
                "those of other rows are looked for as these come"
            )
        problem = "; ".join(
            f"{name_rows(rows, positions)} {problem} {dataset.image_dir}"
            for positions, problem in (
                (search.missing, "name an image that is not in"),
                (search.outside, "name an image outside the folder"),
            )
            if positions
        )
        remedy = _image_remedy(dataset, config, [*search.missing, *search.outside])
    problem, remedy = next(filter(any, world.gather((problem, remedy))), ("", ""))
    if not problem:
        return
    if config.dataset.on_bad_image == "skip":
        say(f"warning: {problem}: they teach nothing (--dataset.on_bad_image skip)")
        return
    out = "" if has_state else ", take the rows out"
    raise SharedError(f"{problem}. {remedy}{out}, or go on without them: --dataset.on_bad_image skip")


def _image_remedy(dataset: RowDataset, config: PretrainConfig, rows: list[int]) -> str:
    """Return the sentence that brings the images of some rows; where all lie in a folder nearby, it is named."""
    file, image_dir = dataset.annotation_file, dataset.image_dir
    if config.dataset.published(config.stage) is not None:
        return f"Put the images there ({config.dataset.remedy(config.stage)})"
    lost = len(rows) == int(dataset.examples.has_image.sum())
    folder = folder_with([dataset.examples[row]["image"] for row in rows], image_dir, file) if lost else None
    if folder is None:
        return "Put the images there"
    root = Path(config.dataset.dataset_root_dir)
    pair = ",".join(os.path.relpath(path, root) for path in (file, folder))
    flag = f"--dataset.{stage_prefix(config.stage)}_stage_components"
    return f"They are in {folder}: name that folder ({flag} {shlex.quote(pair)})"


def tell_markers(rows: Rows, say: Callable[[str], None]) -> None:
    """Tell of texts that hold special tokens, or what other tools mark turns with; they are trained on as they are."""
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
