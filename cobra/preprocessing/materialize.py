"""Build the dataset and the collator of a stage of training."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cobra.conf import DatasetConfig
from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.backbones.vision import ImageTransform
from cobra.models.vlms import check_stage
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.datasets.other_forms import refuse_other_forms
from cobra.preprocessing.packed.files import is_packed
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.errors import UserError


def get_dataset_and_collator(
    stage: str,
    dataset_cfg: DatasetConfig,
    image_transform: ImageTransform,
    tokenizer: PreTrainedTokenizerBase,
    prompt_builder_fn: Callable[..., PromptBuilder],
    default_image_resolution: tuple[int, int, int],
    padding_side: str = "right",
    row_fields: tuple[str, ...] = (),
) -> tuple[AlignDataset | FinetuneDataset, PaddedCollatorForLanguageModeling]:
    """Open the rows of a stage: `align`, `finetune` or `full-finetune`.

    `image_transform` makes pixels of a picture, `tokenizer` cuts rows at its `model_max_length`, `prompt_builder_fn`
    makes an empty conversation of the finetune stages, `default_image_resolution` is (3, height, width), `padding_side`
    is `right`. `row_fields` names numbers that rows hold beside their conversation and that batches shall have too.

    Raises:
        UserError: The stage or an option is unknown, a file or folder is missing (with the command that makes it), or
            rows are bad.
    """
    tokens = tokenizer.model_max_length, int(tokenizer.pad_token_id)
    collator = PaddedCollatorForLanguageModeling(*tokens, default_image_resolution, padding_side, row_fields=row_fields)
    source = (*find_components(stage, dataset_cfg), image_transform, tokenizer)
    dataset: AlignDataset | FinetuneDataset
    if stage == "align":
        # Captions have no CONCLUSION that truncation could cut.
        dataset = AlignDataset(*source, dataset_cfg.on_bad_image)
    else:
        options = dataset_cfg.on_bad_image, dataset_cfg.truncation, dataset_cfg.answer
        dataset = FinetuneDataset(*source, prompt_builder_fn, *options)
    dataset.row_fields = row_fields
    return dataset, collator


def find_components(stage: str, dataset_cfg: DatasetConfig) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a stage.

    Raises:
        UserError: The stage is unknown, one of them does not exist (with the command that makes it), or the first is
            a folder or a table (with the command that writes rows).
    """
    check_stage(stage)
    annotation_file, image_dir = dataset_cfg.components(stage)
    refuse_other_forms(annotation_file)
    kinds = {"annotation file": (annotation_file, _holds_rows), "image folder": (image_dir, Path.is_dir)}
    for kind, (path, is_there) in kinds.items():
        if not is_there(path):
            problem = f"is no {kind.split()[1]}" if path.exists() else "does not exist"
            raise UserError(
                f"the {kind} of {dataset_cfg.dataset_id} for the stage {stage} {problem}: {path}. "
                f"{dataset_cfg.remedy(stage)}"
            )
    return annotation_file, image_dir


def _holds_rows(path: Path) -> bool:
    return path.is_file() or is_packed(path)
