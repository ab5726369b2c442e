"""What both tasks do: announce the models, let each answer, and describe what the scores depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.metrics.similarity import PACKAGE
from cobra.evaluation.report.signature import signature_line
from cobra.evaluation.responses.models_under_test import FINETUNED, ModelsUnderTest
from cobra.evaluation.responses.protocol import Answer, Protocol
from cobra.evaluation.responses.respond import Throughput, answer_variants
from cobra.evaluation.responses.response_cache import AnswerStore
from cobra.util.distributed import World
from cobra.util.provenance import code_version, package_versions

SAMPLE_SEED = 7
"""Of the images that --max_images takes."""

LIST_FILE = "images-with-problems.txt"
"""In the output folder: all images that an error is about, where it names a few."""

_PACKAGES = ("torch", "transformers", "timm", "numpy", "pillow", "sentence-transformers", PACKAGE)


@dataclass
class AllAnswers:
    """What the models under test have answered."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """By variant, one for each image, in order."""
    throughput: dict[str, Throughput] = field(default_factory=dict)
    unreadable: dict[ImageId, str] = field(default_factory=dict)
    """Why images could not be read."""


def answer_all(
    models: ModelsUnderTest,
    images: Sequence[CaptionedImage],
    pictures: Pictures,
    protocol: Protocol,
    output_dir: Path,
    world: World,
    console: Console,
) -> AllAnswers:
    """Let every model answer in both of its variants; see :func:`cobra.evaluation.responses.respond.answer_variants`.

    Args:
        models: One of them in memory, which answers first.
        images: What is asked about.
        pictures: Where they are.
        protocol: What is asked.
        output_dir: Answers are kept in a folder of it.
        world: The processes.
        console: Of the main process.
    """
    found = AllAnswers()
    # The answers of a finished benchmark lie one folder above, by variant.
    store = AnswerStore(output_dir / "answers" / "kept")
    for role in reversed(models.entries):
        answered = answer_variants(
            models.get(role), role, images, pictures, protocol, store, role == FINETUNED, world, console
        )
        found.answers |= answered.answers
        found.throughput |= answered.throughput
        found.unreadable |= answered.unreadable
    return found


def announce(console: Console, protocol: Protocol, models: ModelsUnderTest) -> None:
    """Print what is about to be compared, so that a wrong checkpoint or prompt is seen before the hours are spent."""
    for role, model in models.entries.items():
        text = f"{role}: {model.checkpoint} ({model.about['model_id']}, sha256 {model.about['sha256'][:16]})"
        console.print(escape(text), highlight=False, soft_wrap=True)
    if models.entries:
        for name, wording in protocol.wordings.items():
            console.print(escape(f"{name} wording: {wording!r}"), highlight=False, soft_wrap=True)
        console.print(f"wordings sha256 {protocol.prompt_sha256}", highlight=False, soft_wrap=True)


def describe(models: ModelsUnderTest, protocol: Protocol, max_images: int | None) -> dict[str, Any]:
    """Return what the scores of either task depend on beside the data, as JSON values."""
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


def sign(n: int, about: dict[str, Any], tokenizer: str, idf: str | None) -> str:
    """Return the signature line of what :func:`describe` has described; see :func:`signature_line`."""
    return signature_line(
        n=n,
        tokenizer=tokenizer,
        idf=idf,
        versions={"cobra-vlm": about["code"]["cobra-vlm"], **about["versions"]},
        prompt_sha256=about.get("prompt_sha256"),
        decoding=about.get("decoding"),
        checkpoints={role: model["sha256"] for role, model in about.get("checkpoints", {}).items()},
    )
