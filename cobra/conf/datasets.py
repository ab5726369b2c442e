"""Dataset configurations: which annotation file and image folder feed which stage of training.

`--dataset.type llava-cot-100k` picks a dataset and `--dataset.<field>` overrides a field. One's own in LLaVA's format
is registered here alone: a class, and a member of `DatasetRegistry`.
"""

import shlex
from dataclasses import dataclass
from enum import Enum, unique
from pathlib import Path
from typing import ClassVar

from draccus import ChoiceRegistry

from cobra.util.program import command_line

_ALIGN = (Path("download/llava-laion-cc-sbu-558k/chat.json"), Path("download/llava-laion-cc-sbu-558k/"))
_INSTRUCT = Path("download/llava-v1.5-instruct/")
_COT = Path("download/llava-cot-100k/")
_OWN = (Path("rows.json"), Path("images/"))


@dataclass(frozen=True)
class Publication:
    """The published files of a stage."""

    rows: int
    """Rows as the dataset's paper or page counts them, to the thousand; a plan takes them where no file is there."""
    remedy: str
    """The sentence with the command that makes the files; `{root}` stands for `dataset_root_dir`."""


_FETCH_ALIGN = "python scripts/preprocess.py --dataset_id llava-laion-cc-sbu-558k --root_dir {root}"
_FETCH_INSTRUCT = "python scripts/preprocess.py --dataset_id llava-v1.5-instruct --root_dir {root}"
_MIX_LVIS = "python scripts/additional-datasets/lvis_instruct_4v.py --root_dir {root}"
_MIX_LRV = "python scripts/additional-datasets/lrv_instruct.py --root_dir {root}"
_THEN_MAKE = f"Fetch LLaVA v1.5 ({_FETCH_INSTRUCT}), then make it: "


@dataclass
class DatasetConfig(ChoiceRegistry):
    """The files of one dataset, and where they come from."""

    dataset_id: str
    """Unique name; the value of `--dataset.type`."""
    align_stage_components: tuple[Path, Path] = _ALIGN
    """(annotation file, image folder) of the align stage, relative to `dataset_root_dir`."""
    finetune_stage_components: tuple[Path, Path] = _OWN
    """(annotation file, image folder) of the finetune stages, relative to `dataset_root_dir`."""
    dataset_root_dir: Path = Path("data")
    """Folder that holds `download/`."""
    holdout_components: tuple[Path, Path] | None = None
    """(annotation file, image folder) of held-out rows, which are never trained on; the finetune stages report the loss
    on them where the file is there."""
    on_bad_image: str = "raise"
    """Treatment of rows with a missing or unreadable image: `raise` ends the run, `skip` leaves the row in its place
    without a label, so that the order of all others is kept; such rows are counted and named."""
    truncation: str = "right"
    """Treatment of rows longer than the model takes: `right` cuts their end as Cobra does, `drop` leaves out the rows
    whose last CONCLUSION would be cut."""
    answer: str = "full"
    """Form of the four-stage answers that the finetune stages train on, for arms of a study on the same rows: `full`;
    `conclusion`, that text alone; `untagged`, all texts without tags; `shuffled`, the stages before the CONCLUSION of
    another row of the same source and kind; `without:CAPTION`, or another stage."""
    published_align: ClassVar[Publication | None] = Publication(558_000, f"Fetch it: {_FETCH_ALIGN}")
    """The published files of the align stage, by default those of all of Cobra's datasets; None where there are none.
    No field, as Cobra's config files have none."""
    published_finetune: ClassVar[Publication | None] = None
    """The published files of the finetune stages; None where there are none."""

    def components(self, stage: str) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of a stage, below `dataset_root_dir`."""
        file, folder = self.align_stage_components if stage == "align" else self.finetune_stage_components
        return Path(self.dataset_root_dir) / file, Path(self.dataset_root_dir) / folder

    def published(self, stage: str) -> Publication | None:
        """Return the published files of a stage; None where there are none."""
        return self.published_align if stage == "align" else self.published_finetune

    def remedy(self, stage: str) -> str:
        """Return the sentence with the command that makes a stage's files, or with the flags that name one's own."""
        if (publication := self.published(stage)) is not None:
            return publication.remedy.format(root=shlex.quote(str(self.dataset_root_dir)))
        components = "align_stage_components" if stage == "align" else "finetune_stage_components"
        return (
            f"Give your own with --dataset.{components} '[rows.json, images]' and --dataset.dataset_root_dir; "
            f"{command_line('check', str(self.dataset_root_dir))} looks for rows in other forms and writes "
            "these"
        )


@dataclass
class LLaVa_V15_Config(DatasetConfig):
    """LLaVA v1.5: 665k instruction rows, multimodal and text-only."""

    dataset_id: str = "llava-v15"
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_mix665k.json", _INSTRUCT)
    published_finetune = Publication(665_000, f"Fetch it: {_FETCH_INSTRUCT}")


@dataclass
class LLaVa_Multimodal_Only_Config(DatasetConfig):
    """LLaVA v1.5 without its text-only rows: 625k rows."""

    dataset_id: str = "llava-multimodal"
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_stripped625k.json", _INSTRUCT)
    published_finetune = Publication(
        625_000, f"The images come with {_FETCH_INSTRUCT}; the annotation file is not published: put yours there"
    )


@dataclass
class LLaVa_LVIS4V_Config(DatasetConfig):
    """LLaVA v1.5 with LVIS-Instruct-4V: 888k rows."""

    dataset_id: str = "llava-lvis4v"
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lvis4v_mix888k.json", _INSTRUCT)
    published_finetune = Publication(888_000, _THEN_MAKE + _MIX_LVIS)


@dataclass
class LLaVa_LRV_Config(DatasetConfig):
    """LLaVA v1.5 with LRV-Instruct: 1,008k rows."""

    dataset_id: str = "llava-lrv"
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lrv_mix1008k.json", _INSTRUCT)
    published_finetune = Publication(1_008_000, _THEN_MAKE + _MIX_LRV)


@dataclass
class LLaVa_LVIS4V_LRV_Config(DatasetConfig):
    """LLaVA v1.5 with LVIS-Instruct-4V and LRV-Instruct: 1,231k rows, what Cobra was trained on."""

    dataset_id: str = "llava-lvis4v-lrv"
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lvis4v_lrv_mix1231k.json", _INSTRUCT)
    published_finetune = Publication(1_231_000, f"{_THEN_MAKE}{_MIX_LVIS} && {_MIX_LRV}")


@dataclass
class LLaVa_CoT_100k_Config(DatasetConfig):
    """LLaVA-CoT-100k (arXiv 2411.10440): answers in four stages, made ready by `fine_tune/prepare_llava_cot.py`."""

    dataset_id: str = "llava-cot-100k"
    finetune_stage_components: tuple[Path, Path] = (_COT / "llava_cot_100k.json", _COT)
    holdout_components: tuple[Path, Path] | None = (_COT / "llava_cot_100k_holdout.json", _COT)
    published_finetune = Publication(99_000, "Make it: python fine_tune/prepare_llava_cot.py --dataset_root {root}")


@dataclass
class Custom_Config(DatasetConfig):
    """One's own rows: `--dataset.finetune_stage_components '[rows.json, images/]' --dataset.dataset_root_dir my`."""

    dataset_id: str = "custom"
    align_stage_components: tuple[Path, Path] = _OWN
    published_align = None


@unique
class DatasetRegistry(Enum):
    """Every registered dataset; members know their `dataset_id`."""

    LLAVA_V15 = LLaVa_V15_Config
    LLAVA_MULTIMODAL_ONLY = LLaVa_Multimodal_Only_Config
    LLAVA_LVIS4V = LLaVa_LVIS4V_Config
    LLAVA_LRV = LLaVa_LRV_Config
    LLAVA_LVIS4V_LRV = LLaVa_LVIS4V_LRV_Config
    LLAVA_COT_100K = LLaVa_CoT_100k_Config
    CUSTOM = Custom_Config

    @property
    def dataset_id(self) -> str:
        """The name that `--dataset.type` takes."""
        return str(self.value.dataset_id)


for _member in DatasetRegistry:
    DatasetConfig.register_subclass(_member.dataset_id, _member.value)
