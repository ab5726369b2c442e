"""Tasks of the benchmark, and the runner of them all: models answer, answers are scored, results are written."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import Pictures, check_present
from cobra.evaluation.metrics.base import Metrics
from cobra.evaluation.metrics.similarity import PACKAGE
from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import Results, VariantResult, prepare_output, write_results
from cobra.evaluation.report.signature import signature_line
from cobra.evaluation.report.words import Words
from cobra.evaluation.responses.models_under_test import FINETUNED, ModelsUnderTest
from cobra.evaluation.responses.protocol import VARIANTS, Answer, Protocol
from cobra.evaluation.responses.respond import Answered, answer_variants
from cobra.util.distributed import World
from cobra.util.provenance import code_version, package_versions

SAMPLE_SEED = 7
"""Seed of the sample that --max_images takes."""

LIST_FILE = "images-with-problems.txt"
"""File in the output folder with all images that an error is about, where its message names a few."""

_PACKAGES = ("torch", "transformers", "timm", "numpy", "pillow", "sentence-transformers", PACKAGE)


@dataclass(frozen=True)
class Questions:
    """Images that every model of a task is asked about."""

    images: Sequence[CaptionedImage]
    pictures: Pictures | None
    """Source of the images' files; None where no model is to see them."""
    about: Mapping[str, Any]
    """Entries of `metrics.json`: the data that the scores depend on."""
    tokenizer: str
    """Tokens that are compared, for the signature line."""
    idf: str | None = None
    """References that document frequencies are counted in, for the signature line."""
    prompt: str = ""
    """Final prompt about all images; empty where each image brings its question."""
    questions_sha256: str | None = None
    """Digest of the file of questions, where images bring them."""
    remarks: Sequence[str] = ()
    """Lines printed before the models answer."""
    extra_variants: Sequence[str] = ()
    """Variants that are scored without a model, such as captions out of a file."""
    overlap: str | None = None
    """Sentence on images that were trained on."""
    words: Words = field(default_factory=Words)
    """Words by which screen and page speak of the task."""


@dataclass(frozen=True)
class Scores:
    """Scores of all variants of a task."""

    variants: Mapping[str, VariantResult]
    floors: Mapping[str, Metrics]
    """Scores of captions or answers of known quality; see :class:`Results`."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `metrics.json`."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of further files, by their path in the output folder."""
    tables: Sequence[Table] = ()
    """Tables to print below the one of all metrics."""


class Task(ABC):
    """Questions about images, and the scoring of their answers.

    To add a task, subclass it and enter it in :data:`cobra.evaluation.benchmark.TASKS`.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        """Keep the flags; files are read by :meth:`ask`."""
        self.config = config

    @abstractmethod
    def ask(self) -> Questions:
        """Read the files of the task and return what is asked.

        Raises:
            UserError: A file is missing or not of its form.
        """

    @abstractmethod
    def score(self, answers: Mapping[str, Sequence[Answer]], console: Console) -> Scores:
        """Score the answers of each variant, one an image; called once, on the main process, after :meth:`ask`."""


def run_task(task: Task, config: BenchmarkConfig, world: World, console: Console) -> Results | None:
    """Run a task: ask the models under test, score their answers, write and print the results.

    Returns:
        Results; None on a process that is not the main one.
    """
    questions = task.ask()
    if config.checkpoint is not None and questions.pictures is not None:
        check_present(questions.images, questions.pictures, config.output_dir / LIST_FILE)
    models = ModelsUnderTest(config, world.device)
    names = [name for name in VARIANTS if name.split("+")[0] in models.entries] + [*questions.extra_variants]
    world.on_main(lambda: prepare_output(config.output_dir, names))
    protocol = Protocol(
        questions.prompt,
        config.max_new_tokens,
        config.batch_size,
        questions_sha256=questions.questions_sha256,
        search=config.search,
        beams=config.beams,
    )
    _announce(console, protocol, models, questions.remarks)
    responses = _respond(models, questions, protocol, config.output_dir, world, console)
    if not world.is_main:
        return None
    scores = task.score({name: responses.answers[name] for name in names if name in responses.answers}, console)
    about = {**questions.about, **scores.about, "unreadable": responses.unreadable}
    about |= _describe(models, protocol, config.max_images)
    signature = signature_line(len(questions.images), questions.tokenizer, questions.idf, about)
    variants = {name: scores.variants[name] for name in names}
    others: dict[str, Any] = {"throughput": responses.throughput, "overlap": questions.overlap}
    others["words"] = questions.words
    results = Results.from_variants(questions.images, variants, scores.floors, signature, about, **others)
    # Written first: a screen that is gone must not cost the answers.
    write_results(config.output_dir, results, render_page(results, questions.pictures), scores.files)
    print_results(console, results)
    for table in scores.tables:
        console.print(table)
    print_samples(console, results)
    return results


def _respond(
    models: ModelsUnderTest, questions: Questions, protocol: Protocol, output_dir: Path, world: World, console: Console
) -> Answered:
    """Let every model answer in both of its variants; the one in memory answers first."""
    responses, images, pictures = Answered(), questions.images, questions.pictures
    if pictures is None:
        return responses
    # The answers of a finished benchmark lie one folder above, by variant.
    kept = output_dir / "answers" / "kept"
    for role in reversed(models.entries):
        own_stages = role == FINETUNED
        answered = answer_variants(models.get(role), role, images, pictures, protocol, kept, own_stages, world, console)
        responses.answers |= answered.answers
        responses.throughput |= answered.throughput
        responses.unreadable |= answered.unreadable
    return responses


def _announce(console: Console, protocol: Protocol, models: ModelsUnderTest, remarks: Sequence[str]) -> None:
    """Print what is about to be compared, so that a wrong checkpoint or prompt is seen before the hours are spent."""
    lines = []
    for role, about in models.entries.items():
        published = ", as published" * about["is_stock"]
        lines.append(f"{role}: {about['checkpoint']} ({about['model_id']}{published}, sha256 {about['sha256'][:12]})")
    if models.entries and protocol.prompt:
        lines.append(f"prompt: {protocol.prompt!r}")
    for line in (*lines, *remarks):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _describe(models: ModelsUnderTest, protocol: Protocol, max_images: int | None) -> dict[str, Any]:
    """Return what the scores of any task depend on beside the data, as JSON values."""
    about: dict[str, Any] = {
        "sample": {"max_images": max_images, "seed": SAMPLE_SEED},
        "code": code_version(),
        "versions": package_versions(_PACKAGES),
    }
    if models.entries:
        about |= {name: getattr(protocol, name) for name in ("prompt", "prompt_sha256", "wordings", "decoding")}
        about["checkpoints"] = models.entries
    return about
