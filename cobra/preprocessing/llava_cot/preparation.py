"""Prepare LLaVA-CoT-100k for training: fetch, unpack, convert, check, report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cobra.conf.datasets import LLaVa_CoT_100k_Config
from cobra.models.backbones.llm.specs import llm_spec
from cobra.preprocessing.llava_cot.archive.joined_parts import RECORDS, find_archive
from cobra.preprocessing.llava_cot.archive.source_files import provide_files
from cobra.preprocessing.llava_cot.archive.unpack import Unpacked, find_root, unpack_images
from cobra.preprocessing.llava_cot.config import PrepareConfig
from cobra.preprocessing.llava_cot.convert import Outputs, convert_rows, decide_fates
from cobra.preprocessing.llava_cot.report.counts import Report
from cobra.preprocessing.llava_cot.report.page import render_page
from cobra.preprocessing.llava_cot.rows.image_checks import VERIFY_MODES, ImageChecker
from cobra.preprocessing.llava_cot.rows.scan import scan_rows
from cobra.preprocessing.published_files import COT_ROWS, prepare_command
from cobra.util.errors import UserError, disk_errors
from cobra.util.files import unfinished_files, write_json, write_text
from cobra.util.lock import hold
from cobra.util.parallel import available_cores
from cobra.util.tokens import read_hf_token


def prepare(config: PrepareConfig) -> Report:
    """Prepare LLaVA-CoT-100k in `{dataset_root}/download/llava-cot-100k/` for `--dataset.type llava-cot-100k`.

    Takes `train.jsonl` and the images there: the parts of `image.zip`, a whole `image.zip`, or images that are
    unpacked already; fetches what is not there. Writes the images, `llava_cot_100k.json` (unless no row is usable),
    `llava_cot_100k_holdout.json`, `rejected.jsonl`, `report.json`, `report.html` and `coco_ids.json`. A rerun skips
    what is done; an interrupt loses nothing that is done.

    Raises:
        UserError: A flag makes no sense, files are absent and cannot be fetched, the archive cannot be read, no row's
            image is found anywhere, the disk is full, or another run is at work in the folder.
    """
    check_config(config)
    if not (config.download or config.dataset_root.is_dir()):
        raise UserError(f"--dataset_root {config.dataset_root} does not exist, and --download false fetches nothing")
    annotation, folder = (config.dataset_root / path for path in LLaVa_CoT_100k_Config.finetune_stage_components)
    outputs = Outputs(annotation, annotation.with_stem(f"{annotation.stem}_holdout"), folder / "rejected.jsonl")
    with disk_errors(f"{folder} cannot be prepared"), _alone(folder):
        return _prepare(config, folder, outputs)


def _prepare(config: PrepareConfig, folder: Path, outputs: Outputs) -> Report:
    train, workers = folder / COT_ROWS, config.num_workers or available_cores()
    token = read_hf_token(config.hf_token)
    images = provide_files(config, folder, token)
    report = Report()
    root = ""
    if images:
        root, report.archive = _provide_images(folder, images, config, workers)
    scan = scan_rows(train, config.seed)
    checker = ImageChecker(folder, folder / RECORDS / "images.jsonl", config.verify, workers)
    fates = decide_fates(scan, checker, root, config)
    convert_rows(train, outputs, scan, fates, checker, root, report)
    # Imported here because it brings torch, which all before does without.
    from cobra.preprocessing.llava_cot.report.token_counter import count_tokens

    report.tokens, report.tokens_missing = count_tokens(
        outputs.annotation, outputs.holdout, report.sources, config.llm_backbone_id, config.llm_max_length, token
    )
    report.coco.write(folder / "coco_ids.json")
    write_json(folder / "report.json", report.to_json())
    write_text(folder / "report.html", render_page(report, folder / root))
    return report


def check_config(config: PrepareConfig) -> None:
    """Raise a UserError, naming the flag, where a setting makes no sense."""
    checks = {
        "verify": (config.verify in VERIFY_MODES, f"one of {', '.join(VERIFY_MODES)}"),
        "max_samples": (config.max_samples is None or config.max_samples >= 1, "at least 1, or null"),
        "holdout": (config.holdout is None or config.holdout >= 0, "at least 0, or null"),
        "max_rejected": (0 <= config.max_rejected <= 1, "a share, from 0 to 1"),
        "llm_max_length": (config.llm_max_length >= 1, "at least 1"),
        "num_workers": (config.num_workers is None or config.num_workers >= 1, "at least 1, or null"),
    }
    for name, (good, expected) in checks.items():
        if not good:
            raise UserError(f"--{name} is {getattr(config, name)} and must be {expected}")
    if config.llm_backbone_id != PrepareConfig.llm_backbone_id:
        llm_spec(config.llm_backbone_id)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, and clear what a killed one has left of files that it was writing."""
    records = folder / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    with hold(records, "another run is at work"):
        for leftover in [*unfinished_files(folder), *unfinished_files(records)]:
            leftover.unlink()
        yield


def _provide_images(
    folder: Path, images: list[str], config: PrepareConfig, workers: int
) -> tuple[str, Unpacked | None]:
    """Unpack the archive, if any, where images lie already or else into `folder`; return :func:`find_root`'s too."""
    root = find_root(folder, images)
    unpacked = unpack_images(
        folder, folder / (root or ""), images, keep_parts=config.keep_parts, workers=workers, sources=config.sources
    )
    if root is None and unpacked is None:
        raise UserError(
            f"none of the rows' images (such as {images[0]}) is in the archive {find_archive(folder)[0]}: it is not "
            f"the archive that belongs to {folder / COT_ROWS}. Delete both and fetch them: "
            f"{prepare_command(config.dataset_root)}"
        )
    return root or "", unpacked
