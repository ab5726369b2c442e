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
from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId
from cobra.evaluation.data.image_sources import Pictures, check_present
from cobra.evaluation.metrics.base import Metrics
from cobra.evaluation.metrics.similarity import PACKAGE
from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import Results, VariantResult, prepare_output, write_results
from cobra.evaluation.report.signature import signature_line
from cobra.evaluation.responses.models_under_test import FINETUNED, ModelsUnderTest
from cobra.evaluation.responses.protocol import VARIANTS, Answer, Protocol
from cobra.evaluation.responses.respond import Throughput, answer_variants
from cobra.evaluation.responses.response_cache import AnswerStore
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
        """Score answers; called once, on the main process, after :meth:`ask`.

        Args:
            answers: Answers by variant of a model, one for each image.
            console: Console for remarks on metrics that are left out.
        """


@dataclass
class _Responses:
    """Responses of the models under test."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """Answers by variant, one for each image, in order."""
    throughput: dict[str, Throughput] = field(default_factory=dict)
    unreadable: dict[ImageId, str] = field(default_factory=dict)
    """Reasons why images could not be read."""


def run_task(task: Task, config: BenchmarkConfig, world: World, console: Console) -> Results | None:
    """Run a task: ask the models under test, score their answers, write and print the results.

    Args:
        task: Task made from the flags.
        config: Flags.
        world: Processes that answer together.
        console: Console of the main process; silent on others.

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
    results = Results.from_variants(
        questions.images,
        {name: scores.variants[name] for name in names},
        scores.floors,
        _sign(len(questions.images), about, questions),
        about,
        throughput=responses.throughput,
        overlap=questions.overlap,
    )
    # Written first: a screen that is gone must not cost the answers.
    write_results(config.output_dir, results, render_page(results, questions.pictures), scores.files)
    print_results(console, results)
    for table in scores.tables:
        console.print(table)
    print_samples(console, results)
    return results


def _respond(
    models: ModelsUnderTest, questions: Questions, protocol: Protocol, output_dir: Path, world: World, console: Console
) -> _Responses:
    """Let every model answer in both of its variants; the one in memory answers first."""
    responses = _Responses()
    if questions.pictures is None:
        return responses
    # The answers of a finished benchmark lie one folder above, by variant.
    store = AnswerStore(output_dir / "answers" / "kept")
    for role in reversed(models.entries):
        answered = answer_variants(
            models.get(role),
            role,
            questions.images,
            questions.pictures,
            protocol,
            store,
            role == FINETUNED,
            world,
            console,
        )
        responses.answers |= answered.answers
        responses.throughput |= answered.throughput
        responses.unreadable |= answered.unreadable
    return responses


def _announce(console: Console, protocol: Protocol, models: ModelsUnderTest, remarks: Sequence[str]) -> None:
    """Print what is about to be compared, so that a wrong checkpoint or prompt is seen before the hours are spent."""
    lines = [
        f"{role}: {model.checkpoint} ({model.about['model_id']}, sha256 {model.about['sha256'][:16]})"
        for role, model in models.entries.items()
    ]
    if models.entries:
        lines += [f"{name} wording: {wording!r}" for name, wording in protocol.wordings.items()]
        lines.append(f"wordings sha256 {protocol.prompt_sha256}")
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
        about["prompt"] = protocol.prompt
        about["prompt_sha256"] = protocol.prompt_sha256
        about["wordings"] = protocol.wordings
        about["decoding"] = protocol.decoding
        about["checkpoints"] = {role: model.about for role, model in models.entries.items()}
    return about


def _sign(n: int, about: Mapping[str, Any], questions: Questions) -> str:
    """Return the signature line of what :func:`_describe` has described; see :func:`signature_line`."""
    return signature_line(
        n=n,
        tokenizer=questions.tokenizer,
        idf=questions.idf,
        versions={"cobra-vlm": about["code"]["cobra-vlm"], **about["versions"]},
        prompt_sha256=about.get("prompt_sha256"),
        decoding=about.get("decoding"),
        checkpoints={role: model["sha256"] for role, model in about.get("checkpoints", {}).items()},
    )
