"""Responses of a model about all images: in batches, each image read once for all passes, over all processes.

Images are taken in windows of a few batches. A window's images go through the vision towers and the language model
once; the state after them, of constant size (26 MB an image for the 3B model), is kept while both variants and both
passes of the scratchpad answer, and then let go. Inside a window prompts are sorted by length, so that a batch reads
little padding. Which images are answered together depends on their list and the batch size alone: neither a run that
was killed nor the number of processes changes it, so the same machine gives the same answers to the last bit. Another
batch size changes them by rounding only: where two tokens are equally likely, the other one may be taken.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId, count_images
from cobra.evaluation.data.image_sources import Pictures
from cobra.evaluation.responses.batch_generation import BatchGenerator, Written
from cobra.evaluation.responses.prefetch import LoadedImage, hash_image, prefetch_images
from cobra.evaluation.responses.protocol import Answer, Protocol
from cobra.evaluation.responses.response_cache import AnswerFile, StoredAnswer
from cobra.util.distributed import World
from cobra.util.errors import UserError
from cobra.util.numbers import part_of
from cobra.util.printable import printable

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM

# Their states are held at the same time: at 16 images a batch 1.7 GB for the 3B model.
WINDOW_BATCHES = 4
# Unreadable images that are named on the screen.
_SHOWN = 5


@dataclass(frozen=True)
class Throughput:
    """How fast a variant was answered; answers of earlier runs are not counted."""

    captions: int
    """Images answered by this run, all processes together."""
    tokens: int
    """Tokens written for them, those of a scratchpad's first pass too."""
    seconds: float
    """Time that they took the slowest process. Each variant counts the reading of the images in full, though it is done
    once for both, so this is the time that the variant would take alone."""

    @property
    def captions_per_second(self) -> float:
        """Images answered a second; 0 where there was nothing to answer."""
        return self.captions / self.seconds if self.captions else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens written a second; 0 where there was nothing to answer."""
        return self.tokens / self.seconds if self.captions else 0.0


@dataclass
class Answered:
    """Answers of one model or several."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """Answers by variant, one for each image, in order."""
    throughput: dict[str, Throughput] = field(default_factory=dict)
    """Throughput by variant."""
    unreadable: dict[ImageId, str] = field(default_factory=dict)
    """Reasons why images could not be read; their answers are empty."""


@dataclass
class _Variant:
    """One variant's answers while they come."""

    name: str
    scratchpad: bool
    file: AnswerFile
    known: dict[ImageId, Answer] = field(default_factory=dict)
    """Answers of earlier runs."""
    fresh: dict[ImageId, Answer] = field(default_factory=dict)
    """Answers of this process."""
    tokens: int = 0
    seconds: float = 0.0

    def open_among(self, images: Iterable[CaptionedImage]) -> int:
        """Return how many images have no answer yet."""
        return sum(image.image_id not in self.known and image.image_id not in self.fresh for image in images)

    def keep(self, answers: Sequence[tuple[LoadedImage, Written | None]]) -> int:
        """Write answers, None about an unreadable image, to disk where there is none; return how many were written."""
        new = [(loaded, written) for loaded, written in answers if loaded.image.image_id not in self.known]
        stored = []
        for loaded, written in new:
            texts = ("", "", None) if written is None else (written.prompt, written.raw, written.analysis)
            answer = Answer.from_text(loaded.image.image_id, *texts, problem=loaded.problem)
            stored.append(StoredAnswer(answer, loaded.sha256))
            self.tokens += 0 if written is None else written.tokens
        if stored:
            self.file.append(stored)
            self.fresh |= {entry.answer.image_id: entry.answer for entry in stored}
        return len(new)


def answer_variants(
    vlm: "CobraVLM",
    role: str,
    images: Sequence[CaptionedImage],
    pictures: Pictures,
    protocol: Protocol,
    folder: Path,
    own_stages: bool,
    world: World,
    console: Console,
    scratchpads: Sequence[bool] = (False, True),
) -> Answered:
    """Let a model answer the final prompt about every image, at once and after a scratchpad; the same on every process.

    Every process has to call it. Answers go to the folder as they come, and what is there already is not asked again.

    Args:
        vlm: In evaluation mode.
        role: `baseline` or `finetuned`: the variants are called so, and `<role>+scratchpad`.
        images: The images, the same on every process.
        pictures: Source of their files. An image that cannot be read is answered by an empty text; see
            :attr:`Answer.problem`.
        protocol: Settings that all variants have in common.
        folder: Cache of answers, on a disk that all processes see.
        own_stages: True where the model was fine-tuned to write stages by itself; see
            :mod:`cobra.evaluation.responses.protocol`.
        world: The processes; windows of images are dealt over them.
        console: Console of the main process.
        scratchpads: Variants that are answered: False at once, True after a scratchpad.

    Raises:
        UserError: The final prompt is too long for the model, a batch is too large for the device's memory, or
            answers cannot be written.
    """
    generator = BatchGenerator(vlm, protocol, own_stages)
    generator.check(images)
    variants = []
    for scratchpad in scratchpads:
        # All that answers depend on beside the image: batches, devices and processes are a matter of rounding.
        settings = {name: getattr(vlm, name) for name in ("model_id", "checkpoint_sha256")}
        settings["dtype"] = str(vlm.dtype).removeprefix("torch.")
        if vlm.quantized:
            settings["quantize"] = vlm.quantized
        file = AnswerFile(folder, settings | protocol.settings(scratchpad, own_stages), world.rank)
        variants.append(_Variant(role + "+scratchpad" * scratchpad, scratchpad, file))
    _read_known(variants, images, pictures, world, console)
    size = protocol.batch_size * WINDOW_BATCHES
    windows = [images[start : start + size] for start in range(0, len(images), size)]
    windows = [window for window in windows if any(variant.open_among(window) for variant in variants)]
    own = windows[world.rank :: world.size]
    with _progress(console if world.is_main and own else Console(quiet=True)) as progress:
        wanted = {variant.name: sum(map(variant.open_among, own)) for variant in variants}
        tasks = {name: progress.add_task(name, total=total, visible=total > 0) for name, total in wanted.items()}
        for name, count in _answer_windows(vlm, generator, variants, own, pictures, protocol.batch_size):
            progress.advance(tasks[name], count)
    answered = _collect(variants, images, world)
    if world.is_main:
        _print_unreadable(console, answered.unreadable)
    return answered


def _read_known(
    variants: Sequence[_Variant], images: Sequence[CaptionedImage], pictures: Pictures, world: World, console: Console
) -> None:
    """Give all variants the answers of earlier runs, as the main process finds them, and print how many these are."""
    known: list[dict[ImageId, Answer]] = []
    if world.is_main:
        files = [variant.file.read() for variant in variants]
        asked = [image for image in images if any(image.image_id in stored for stored in files)]
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(lambda image: hash_image(image, pictures), asked))
        sha256 = {image.image_id: value for image, value in zip(asked, hashes, strict=True)}
        known = [
            {image_id: entry.answer for image_id, entry in stored.items() if sha256.get(image_id) == entry.image_sha256}
            for stored in files
        ]
    # Only now may anyone write, and all deal the same windows.
    for variant, answers in zip(variants, world.gather(known)[0], strict=True):
        variant.known = answers
        count = len(images) - variant.open_among(images)
        if count and world.is_main:
            text = f"{variant.name}: {part_of(count, len(images))} answers are from before, with the same settings"
            console.print(text, highlight=False, soft_wrap=True)


@torch.inference_mode()
def _answer_windows(
    vlm: "CobraVLM",
    generator: BatchGenerator,
    variants: Sequence[_Variant],
    windows: Sequence[Sequence[CaptionedImage]],
    pictures: Pictures,
    batch_size: int,
) -> Iterator[tuple[str, int]]:
    """Answer window by window; yield a variant's name and how many of its answers were written, after each batch."""
    images = (image for window in windows for image in window)
    loading = prefetch_images(images, pictures, vlm.vision_backbone.image_transform, ahead=2 * batch_size)
    try:
        for window in windows:
            begin = _now(vlm)
            loaded = list(islice(loading, len(window)))
            yield from _answer_window(vlm, generator, variants, loaded, _now(vlm) - begin)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--batch_size {batch_size} is too large for the memory of {vlm.device}: give a smaller one; the answers "
            "that are there are kept"
        ) from error
    finally:
        loading.close()


def _answer_window(
    vlm: "CobraVLM",
    generator: BatchGenerator,
    variants: Sequence[_Variant],
    window: Sequence[LoadedImage],
    waited: float,
) -> Iterator[tuple[str, int]]:
    """Answer one window, waited for some seconds; its states are gone before the next one is read."""
    begin = _now(vlm)
    readable = [loaded for loaded in window if loaded.pixels is not None]
    states = generator.read_images([loaded.pixels for loaded in readable if loaded.pixels is not None])
    reading = waited + _now(vlm) - begin
    for variant in variants:
        if not variant.open_among([loaded.image for loaded in window]):
            continue
        begin = _now(vlm)
        yield variant.name, variant.keep([(loaded, None) for loaded in window if loaded.pixels is None])
        for batch in generator.answer(states, [loaded.image for loaded in readable], variant.scratchpad):
            yield variant.name, variant.keep([(readable[row], written) for row, written in batch.items()])
        variant.seconds += reading + _now(vlm) - begin


def _now(vlm: "CobraVLM") -> float:
    """Return the time in seconds, once the model's device has done what it was given."""
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
    return time.perf_counter()


def _collect(variants: Sequence[_Variant], images: Sequence[CaptionedImage], world: World) -> Answered:
    """Join what all processes have, and what was there before."""
    shares = world.gather([(variant.fresh, variant.tokens, variant.seconds) for variant in variants])
    answers, throughput = {}, {}
    for place, variant in enumerate(variants):
        fresh, tokens, seconds = zip(*(share[place] for share in shares), strict=True)
        by_image = variant.known | {image_id: answer for part in fresh for image_id, answer in part.items()}
        answers[variant.name] = [by_image[image.image_id] for image in images]
        throughput[variant.name] = Throughput(sum(map(len, fresh)), sum(tokens), max(seconds))
    every = chain.from_iterable(answers.values())
    return Answered(answers, throughput, {one.image_id: one.problem for one in every if one.problem is not None})


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _print_unreadable(console: Console, unreadable: Mapping[ImageId, str]) -> None:
    if unreadable:
        console.print(f"{count_images(len(unreadable))} cannot be read and count as empty answers:", highlight=False)
        for problem in list(unreadable.values())[:_SHOWN]:
            console.print(f"  {escape(printable(problem))}", highlight=False, soft_wrap=True)
        if len(unreadable) > _SHOWN:
            console.print("  ...")
