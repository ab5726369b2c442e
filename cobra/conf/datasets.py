"""Dataset configurations: which annotation file and image folder feed which stage of training.

Every dataset is a dataclass under a `draccus` choice registry, so `--dataset.type llava-cot-100k` picks one and
`--dataset.<field>` overrides a field. Paths are relative to `dataset_root_dir`.
"""

from dataclasses import dataclass, field
from enum import Enum, unique
from pathlib import Path

from draccus import ChoiceRegistry

_ALIGN = (Path("download/llava-laion-cc-sbu-558k/chat.json"), Path("download/llava-laion-cc-sbu-558k/"))
_INSTRUCT = Path("download/llava-v1.5-instruct/")
_COT = Path("download/llava-cot-100k/")


@dataclass
class DatasetConfig(ChoiceRegistry):
    """Where the rows and images of one dataset lie."""

    dataset_id: str
    """Unique name; the value of `--dataset.type`."""
    align_stage_components: tuple[Path, Path]
    """(annotation file, image folder) of the align stage, relative to `dataset_root_dir`."""
    finetune_stage_components: tuple[Path, Path]
    """(annotation file, image folder) of the finetune stages, relative to `dataset_root_dir`."""
    dataset_root_dir: Path = Path("data")
    """Folder that holds `download/`."""
    holdout_components: tuple[Path, Path] | None = None
    """(annotation file, image folder) of rows that are never trained on; the finetune stages report the loss on them
    where the file is there."""
    on_bad_image: str = "raise"
    """What a row with a missing or unreadable image does: `raise` ends the run, `skip` lets the row stay in its place
    without a label, so that the order of all others is kept; such rows are counted and named."""
    truncation: str = "right"
    """What a row longer than the model takes does: `right` cuts its end as Cobra does, `drop` leaves out the rows whose
    last CONCLUSION would be cut."""


@dataclass
class LLaVa_V15_Config(DatasetConfig):
    """LLaVA v1.5: 665k instruction rows, multimodal and text-only."""

    dataset_id: str = "llava-v15"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_mix665k.json", _INSTRUCT)


@dataclass
class LLaVa_Multimodal_Only_Config(DatasetConfig):
    """LLaVA v1.5 without its text-only rows: 625k rows."""

    dataset_id: str = "llava-multimodal"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_stripped625k.json", _INSTRUCT)


@dataclass
class LLaVa_LVIS4V_Config(DatasetConfig):
    """LLaVA v1.5 with LVIS-Instruct-4V: 888k rows."""

    dataset_id: str = "llava-lvis4v"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lvis4v_mix888k.json", _INSTRUCT)


@dataclass
class LLaVa_LRV_Config(DatasetConfig):
    """LLaVA v1.5 with LRV-Instruct: 1,008k rows."""

    dataset_id: str = "llava-lrv"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lrv_mix1008k.json", _INSTRUCT)


@dataclass
class LLaVa_LVIS4V_LRV_Config(DatasetConfig):
    """LLaVA v1.5 with LVIS-Instruct-4V and LRV-Instruct: 1,231k rows, what Cobra was trained on."""

    dataset_id: str = "llava-lvis4v-lrv"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_INSTRUCT / "llava_v1_5_lvis4v_lrv_mix1231k.json", _INSTRUCT)


@dataclass
class LLaVa_CoT_100k_Config(DatasetConfig):
    """LLaVA-CoT-100k (arXiv 2411.10440): answers in four stages, made ready by `fine_tune/prepare_llava_cot.py`."""

    dataset_id: str = "llava-cot-100k"
    align_stage_components: tuple[Path, Path] = _ALIGN
    finetune_stage_components: tuple[Path, Path] = (_COT / "llava_cot_100k.json", _COT)
    holdout_components: tuple[Path, Path] | None = (_COT / "llava_cot_100k_holdout.json", _COT)


@dataclass
class Custom_Config(DatasetConfig):
    """One's own rows in LLaVA's format: give the components on the command line.

    `--dataset.type custom --dataset.finetune_stage_components '[rows.json, images/]' --dataset.dataset_root_dir my`
    """

    dataset_id: str = "custom"
    align_stage_components: tuple[Path, Path] = field(default_factory=lambda: (Path("rows.json"), Path("images/")))
    finetune_stage_components: tuple[Path, Path] = field(default_factory=lambda: (Path("rows.json"), Path("images/")))


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
