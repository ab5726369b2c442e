"""Components of every published dataset, and the URLs that they are fetched from."""

import string
from pathlib import Path
from typing import Literal, TypedDict

from cobra.util.program import command_line

COT_ID = "llava-cot-100k"
COT_REPO = "Xkev/LLaVA-CoT-100k"
"""Repository of LLaVA-CoT-100k on the Hugging Face hub."""
COT_ROWS = "train.jsonl"
"""Its rows, JSON lines."""

_HUB = "https://huggingface.co/datasets"
_COT = f"{_HUB}/{COT_REPO}/resolve/main"
_COCO = "http://images.cocodataset.org"
_VG = "https://cs.stanford.edu/people/rak248/VG_100K_2"


class Component(TypedDict):
    """One file or folder of a dataset."""

    name: str
    """Path below the dataset's folder, `/` between folders."""
    extract: bool
    """True if the URL is an archive to unpack."""
    extract_type: Literal["file", "directory"]
    """The kind of entry that `name` is."""
    url: str
    do_rename: bool
    """True if an archive's content, without a folder that wraps all of it, becomes `name`; False unpacks it into the
    dataset's folder as it is. Plain files always become `name`."""


def _file(name: str, url: str) -> Component:
    return Component(name=name, extract=False, extract_type="file", url=url, do_rename=True)


def _folder(name: str, url: str, do_rename: bool = True) -> Component:
    return Component(name=name, extract=True, extract_type="directory", url=url, do_rename=do_rename)


DATASET_REGISTRY: dict[str, list[Component]] = {
    "llava-laion-cc-sbu-558k": [
        _file("chat.json", f"{_HUB}/liuhaotian/LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k.json"),
        # The rows name 00453/004539375.jpg, so the archive's folders lie beside chat.json.
        _folder("images", f"{_HUB}/liuhaotian/LLaVA-Pretrain/resolve/main/images.zip", do_rename=False),
    ],
    "llava-v1.5-instruct": [
        _file("llava_v1_5_mix665k.json", f"{_HUB}/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json"),
        _folder("coco/train2017", f"{_COCO}/zips/train2017.zip"),
        _folder("gqa/images", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),
        _folder("ocr_vqa/images", f"{_HUB}/qnguyen3/ocr_vqa/resolve/main/ocr_vqa.zip"),
        _folder("textvqa/train_images", "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"),
        _folder("vg/VG_100K", f"{_VG}/images.zip"),
        _folder("vg/VG_100K_2", f"{_VG}/images2.zip"),
    ],
    # The files of `main`; the hub's list decides which files are fetched.
    COT_ID: [
        _file(COT_ROWS, f"{_COT}/{COT_ROWS}"),
        *(_file(f"image.zip.part-a{end}", f"{_COT}/image.zip.part-a{end}") for end in string.ascii_lowercase[:16]),
    ],
    "coco-captions": [
        _folder("annotations", f"{_COCO}/annotations/annotations_trainval2017.zip"),
        _folder("val2017", f"{_COCO}/zips/val2017.zip"),
    ],
}
"""Dataset id -> its components; datasets lie in `{root_dir}/download/{dataset_id}/`."""


def prepare_command(root: Path) -> str:
    """Return the command that fetches and prepares LLaVA-CoT-100k in a data folder."""
    return command_line("prepare", "--dataset_root", str(root))
