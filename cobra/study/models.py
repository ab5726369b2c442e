"""Models that are there already, scored and compared as the arms of a study are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

import cobra
from cobra.evaluation.benchmark import check_answering, given_flags
from cobra.evaluation.config import CONCLUSIONS, BenchmarkConfig
from cobra.evaluation.data.coco import DEFAULT_ANNOTATIONS
from cobra.evaluation.tasks.conclusions import DEFAULT_ROWS
from cobra.study.exam import Exam, Score, read_exam
from cobra.study.logs import split_name
from cobra.study.page import GIVEN
from cobra.study.report import PAGE, RESULT, Findings, report
from cobra.study.verdict import START
from cobra.util.distributed import World, hold_together, join_world
from cobra.util.errors import UserError
from cobra.util.tokens import read_hf_token

_USED = frozenset(
    ("model", "task", "coco_annotations", "image_dir", "llava_cot_annotations", "output_dir", "max_new_tokens")
    + ("max_images", "batch_size", "hf_token", "device", "dtype", "quantize")
)


def score_models(config: BenchmarkConfig) -> None:
    """Score all models of `--model`, compare them, and write `study.md` and `study.json`.

    Under torchrun the processes answer together, and the main one does the rest.

    Raises:
        UserError: Flags, files, images or a checkpoint are not as they must be; answers that were given are kept.
    """
    pairs = check_models(config)
    world = join_world(config.device)
    console = Console(quiet=not world.is_main, highlight=False, soft_wrap=True, markup=False)
    try:
        with hold_together(world, config.output_dir, "another benchmark is at work"):
            exam = _read(config)
            scores: dict[str, list[Score]] = {}
            for name, checkpoint in pairs:
                models = scores.setdefault(name, [])
                models.append(_score(config, exam, checkpoint, f"{name}-{len(models) + 1}", name, world))
            _check_different(config, scores)
            if world.is_main:
                for sentence in report(_findings(config, exam, scores), config.output_dir):
                    console.print(sentence)
                console.print(f"page: {config.output_dir / PAGE}; numbers: {config.output_dir / RESULT}")
    finally:
        world.close()


def check_models(config: BenchmarkConfig) -> list[tuple[str, str]]:
    """Return name and checkpoint of every model.

    Raises:
        UserError: A value is not `NAME=CHECKPOINT`, one name is all there is, a checkpoint is there twice, or another
            flag has no use here or makes no sense.
    """
    pairs = [split_name(flag, "--model") for flag in config.model]
    if len({name for name, _ in pairs}) < 2:
        raise UserError("--model compares models of two names or more: full=runs/a conclusion=runs/b")
    if twice := sorted({place for _, place in pairs if [other for _, other in pairs].count(place) > 1}):
        raise UserError(f"--model names {', '.join(twice)} more than once: each counts as one of its own")
    if given := given_flags(config, _USED):
        raise UserError(f"--model compares models under one protocol, and has no use for {', '.join(given)}")
    check_answering(config)
    return pairs


def _check_different(config: BenchmarkConfig, scores: dict[str, list[Score]]) -> None:
    """Raise a UserError where two models of one name have the same weights: they would pass for two seeds."""
    for name, models in scores.items():
        if len({model.sha256 for model in models}) < len(models):
            raise UserError(
                f"--model {' '.join(config.model)}: of {name} two checkpoints hold the same weights, and each was to "
                "be another seed's"
            )


def _read(config: BenchmarkConfig) -> Exam:
    limits = (config.output_dir, config.max_new_tokens, config.batch_size)
    if config.task == CONCLUSIONS:
        rows = Path(config.llava_cot_annotations or DEFAULT_ROWS)
        return read_exam(*limits, questions=(rows, config.image_dir, config.max_images))
    source = config.coco_annotations or str(DEFAULT_ANNOTATIONS)
    return read_exam(*limits, captions=(source, config.image_dir, config.max_images))


def _score(config: BenchmarkConfig, exam: Exam, checkpoint: str, name: str, arm: str, world: World) -> Score:
    vlm = cobra.load(
        checkpoint,
        hf_token=read_hf_token(config.hf_token),
        device=str(world.device),
        dtype=config.dtype,
        quantize=config.quantize,
    )
    return exam.take(vlm, name, arm, config.output_dir / "answers", world)


def _findings(config: BenchmarkConfig, exam: Exam, scores: dict[str, list[Score]]) -> Findings:
    models = "; ".join(config.model)
    about = {"models": models, "task": config.task, "data": f"sha256 {exam.sha256[:12]}"}
    about |= {"most new tokens": str(config.max_new_tokens)}
    return Findings(scores, exam.kinds, about, arms_without_seed(scores), origin=GIVEN)


def arms_without_seed(scores: Mapping[str, Sequence[Score]]) -> frozenset[str]:
    """Return the names whose one model stands for itself: the checkpoint that all start from, or all of them.

    Where other names have several models, a single one is one seed of its arm, whose spread is not known.
    """
    single = frozenset(name for name, models in scores.items() if len(models) == 1)
    return single if len(single) == len(scores) else single & {START}
