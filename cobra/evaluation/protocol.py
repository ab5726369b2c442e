"""How the variants answer: the same images, the same final wording, the same limits, always the likeliest token.

A variant is a model answering at once, or after a scratchpad: a first pass writes an analysis of the image, the second
sees the image and the analysis and answers the common final prompt. A model that was fine-tuned on four-stage answers
writes its own stages in the first pass, so it is asked the common prompt there, and SUMMARY, CAPTION and REASONING are
its analysis; any other model is asked for an analysis in our words. The tags never reach the second prompt, as no
human turn of LLaVA-CoT has any.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cobra.evaluation.coco import CaptionedImage, ImageId, load_image
from cobra.preprocessing.datasets import extract_reasoning_trace

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM

DEFAULT_PROMPT = "Please carefully observe the image and come up with a caption for the image."
ANALYSIS_PROMPT = (
    "Study the image and write down what you see, before anybody asks about it: the place, the main things in it, how "
    "many there are, what they look like, where they are, and what is going on between them."
)
SCRATCHPAD_PROMPT = "An analysis of the image:\n{analysis}\n\n{prompt}"

MAX_NEW_TOKENS = 512
SCRATCHPAD_TOKENS = 256


@dataclass(frozen=True)
class Protocol:
    """What all variants have in common."""

    prompt: str = DEFAULT_PROMPT
    """The final prompt."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Of an answer."""
    batch_size: int = 8
    """Images answered at once; it does not change the answers beyond rounding."""

    @property
    def wordings(self) -> dict[str, str]:
        """All text that a model may be given beside the image."""
        return {"prompt": self.prompt, "analysis": ANALYSIS_PROMPT, "scratchpad": SCRATCHPAD_PROMPT}

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of the wordings as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.wordings, sort_keys=True).encode()).hexdigest()

    @property
    def decoding(self) -> dict[str, int | bool]:
        """How tokens are chosen, and how many."""
        return {
            "do_sample": False,
            "max_new_tokens": self.max_new_tokens,
            "scratchpad_max_new_tokens": SCRATCHPAD_TOKENS,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Answer:
    """One model's answer about one image."""

    image_id: ImageId
    prompt: str
    """The human turn that was answered."""
    raw: str
    """The answer as generated, tags included."""
    scored: str
    """What the metrics see; see :func:`scored_text`."""
    source: str
    """Where it was found: `conclusion`, `caption` or `text`."""
    valid_structure: bool
    """All four stages are there, closed, in order, and nothing else."""
    analysis: str | None = None
    """What the first pass of a scratchpad wrote, as generated."""


def scored_text(raw: str) -> tuple[str, str]:
    """Return what of an answer is scored, and where it was found.

    That is the CONCLUSION, else the CAPTION (`caption`), else the whole answer (`text`). Empty stages do not count.
    """
    trace = extract_reasoning_trace(raw)
    if trace.conclusion:
        return trace.conclusion, "conclusion"
    if trace.caption:
        return trace.caption, "caption"
    return raw.strip(), "text"


def answer_images(
    vlm: "CobraVLM",
    images: Sequence[CaptionedImage],
    image_dir: Path,
    protocol: Protocol,
    scratchpad: bool,
    own_stages: bool,
    title: str,
) -> list[Answer]:
    """Let a model answer the final prompt about every image.

    Args:
        vlm: In evaluation mode.
        images: The images.
        image_dir: Their folder.
        protocol: What all variants have in common.
        scratchpad: Whether a first pass writes an analysis.
        own_stages: Whether the model was fine-tuned to write one by itself; see this module's head.
        title: Names the variant on the progress bar.

    Returns:
        An answer for each image, in order.

    Raises:
        UserError: An image cannot be read.
    """
    prompts = [protocol.prompt] * len(images)
    analyses: list[str | None] = [None] * len(images)
    if scratchpad:
        first = protocol.prompt if own_stages else ANALYSIS_PROMPT
        written = _generate(
            vlm, images, image_dir, [first] * len(images), SCRATCHPAD_TOKENS, protocol, f"{title} (1/2)"
        )
        prompts = [second_prompt(text, protocol.prompt) for text in written]
        analyses = list(written)
        title = f"{title} (2/2)"
    raws = _generate(vlm, images, image_dir, prompts, protocol.max_new_tokens, protocol, title)
    return [
        Answer(image.image_id, prompt, raw, *scored_text(raw), extract_reasoning_trace(raw).is_valid, analysis)
        for image, prompt, raw, analysis in zip(images, prompts, raws, analyses, strict=True)
    ]


def second_prompt(analysis: str, prompt: str) -> str:
    """Return the human turn of a scratchpad's second pass.

    Args:
        analysis: What the first pass wrote. Of a tagged answer the texts before the conclusion are kept; an answer
            without tags is kept whole.
        prompt: The common final prompt; alone where nothing is left of the analysis.
    """
    trace = extract_reasoning_trace(analysis)
    stages = [text for text in (trace.summary, trace.caption, trace.reasoning) if text]
    kept = "\n".join(stages) if stages or trace.conclusion is not None else analysis.strip()
    return SCRATCHPAD_PROMPT.format(analysis=kept, prompt=prompt) if kept else prompt


def _generate(
    vlm: "CobraVLM",
    images: Sequence[CaptionedImage],
    image_dir: Path,
    prompts: Sequence[str],
    max_new_tokens: int,
    protocol: Protocol,
    title: str,
) -> list[str]:
    """Answer one prompt for each image, in batches, with a progress bar."""
    answers: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=len(images))
        for start in range(0, len(images), protocol.batch_size):
            batch = slice(start, start + protocol.batch_size)
            pixels = vlm.preprocess([load_image(image_dir / image.file_name) for image in images[batch]])
            texts = [_as_turn(vlm, prompt) for prompt in prompts[batch]]
            answers += vlm.generate_batch(pixels, texts, max_new_tokens=max_new_tokens, do_sample=False)
            progress.update(task, completed=len(answers))
    return answers


def _as_turn(vlm: "CobraVLM", text: str) -> str:
    """Return the text as the model's prompt format has a first human turn."""
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", text)
    return builder.get_prompt()
