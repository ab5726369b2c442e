"""Protocol of the variants: the same images, final wording and limits; greedy, unless a search is asked for.

A variant is a model answering at once, or after a scratchpad: a first pass writes an analysis of the image, the second
sees the image and the analysis and answers the common final prompt. A model that was fine-tuned on four-stage answers
writes its own stages in the first pass, so it is asked the common prompt there, ends after its REASONING, and SUMMARY,
CAPTION and REASONING are its analysis; any other model is asked for an analysis in our words. The tags never reach the
second prompt, as no human turn of LLaVA-CoT has any.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util.errors import UserError
from cobra.util.files import decode, encoding_of
from cobra.util.home_paths import expand_home

VARIANTS = ("baseline", "baseline+scratchpad", "finetuned", "finetuned+scratchpad", "predictions")

DEFAULT_PROMPT = "Please carefully observe the image and come up with a caption for the image."
LMMS_EVAL_PROMPT = "Provide a one-sentence caption for the provided image."
ANALYSIS_PROMPT = (
    "Study the image and write down what you see, before anybody asks about it: the place, the main things in it, how "
    "many there are, what they look like, where they are, and what is going on between them."
)
SCRATCHPAD_PROMPT = "An analysis of the image:\n{analysis}\n\n{prompt}"

# Final prompts by name.
PROMPTS = {"seed": DEFAULT_PROMPT, "lmms-eval": LMMS_EVAL_PROMPT}

MAX_NEW_TOKENS = 512
SCRATCHPAD_TOKENS = 256
# What a model's own stages end with when they serve as its analysis.
OWN_STAGES_END = ("</REASONING>", "<CONCLUSION>")


def resolve_prompt(prompt: str) -> str:
    """Return the final prompt that a flag asks for.

    Args:
        prompt: A name of :data:`PROMPTS`; `@path`, a file of UTF-8 text, which counts without a byte order mark and
            the white space around it; anything else is the prompt itself, names of files too.

    Raises:
        UserError: The prompt is empty, or the file is not there, is not UTF-8 text, or is empty.
    """
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if not prompt.strip():
        raise UserError("--prompt is empty: leave it out for the default one")
    if not prompt.startswith("@"):
        return prompt
    path = Path(expand_home(prompt[1:], "prompt"))
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"--prompt {prompt}: the file {path} cannot be read ({reason}). A prompt that begins with @ has to be put "
            "into a file"
        ) from error
    text = decode(content, encoding_of(content), f"--prompt {prompt}: {path}").strip()
    if not text:
        raise UserError(f"--prompt {prompt}: the file {path} holds no text")
    return text


@dataclass(frozen=True)
class Protocol:
    """Settings that all variants have in common."""

    prompt: str = DEFAULT_PROMPT
    """The final prompt."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Limit of an answer, in tokens."""
    batch_size: int = 8
    """Images answered at once; it does not change the answers beyond rounding."""
    questions_sha256: str | None = None
    """Digest of the file that gives images their own questions; None where there is no file."""
    search: str = "none"
    """How the final answer is searched for; see :class:`cobra.models.vlms.SearchOptions`."""
    beams: int = 4
    """Branches of a search."""

    @property
    def wordings(self) -> dict[str, str]:
        """All text that a model may be given beside the image; questions of images' own by their file's hash."""
        final = {"prompt": self.prompt}
        if self.questions_sha256 is not None:
            final = {"questions_sha256": self.questions_sha256}
        return {**final, "analysis": ANALYSIS_PROMPT, "scratchpad": SCRATCHPAD_PROMPT}

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of the wordings as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.wordings, sort_keys=True).encode()).hexdigest()

    @property
    def decoding(self) -> dict[str, Any]:
        """How tokens are chosen, and how many."""
        return {
            "do_sample": False,
            "max_new_tokens": self.max_new_tokens,
            "scratchpad_max_new_tokens": SCRATCHPAD_TOKENS,
            "batch_size": self.batch_size,
            **self._searched,
        }

    @property
    def _searched(self) -> dict[str, Any]:
        # A search samples the final pass; a scratchpad's first pass stays greedy.
        return {} if self.search == "none" else {"do_sample": True, "search": self.search, "beams": self.beams}

    def prompt_of(self, image: CaptionedImage) -> str:
        """Return the final prompt about an image: its own question, or that of all images."""
        return self.prompt if image.question is None else image.question

    def settings(self, scratchpad: bool, own_stages: bool) -> dict[str, Any]:
        """Return all that a variant's answers depend on beside the model and the image, as JSON values."""
        final = self.prompt if self.questions_sha256 is None else self.questions_sha256
        found: dict[str, Any] = {"prompt": final, "do_sample": False, "max_new_tokens": self.max_new_tokens}
        if scratchpad:
            found["scratchpad"] = {
                "prompt": SCRATCHPAD_PROMPT,
                "first_prompt": final if own_stages else ANALYSIS_PROMPT,
                "max_new_tokens": SCRATCHPAD_TOKENS,
                "stop_strings": list(OWN_STAGES_END) if own_stages else [],
            }
        return found | self._searched


@dataclass(frozen=True)
class Answer:
    """One model's answer about one image."""

    image_id: ImageId
    prompt: str
    """The human turn that was answered."""
    raw: str
    """The answer as generated, tags included."""
    scored: str
    """Text that the metrics see; see :func:`scored_text`."""
    source: str
    """Part of the answer that is scored: `conclusion`, `caption` or `text`."""
    valid_structure: bool
    """All four stages are there, closed, in order, and nothing else."""
    analysis: str | None = None
    """Text of a scratchpad's first pass, as generated."""
    problem: str | None = None
    """Reason why the image could not be read; the answer is empty then."""

    @classmethod
    def from_text(
        cls, image_id: ImageId, prompt: str, raw: str, analysis: str | None = None, problem: str | None = None
    ) -> "Answer":
        """Build an answer from what was written."""
        valid = extract_reasoning_trace(raw).is_valid
        return cls(image_id, prompt, raw, *scored_text(raw), valid, analysis, problem)


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


def second_prompt(analysis: str, prompt: str) -> str:
    """Return the human turn of a scratchpad's second pass.

    Args:
        analysis: Text of the first pass. Of a tagged answer the texts before the conclusion are kept; an answer
            without tags is kept whole.
        prompt: The common final prompt; alone where nothing is left of the analysis.
    """
    trace = extract_reasoning_trace(analysis)
    stages = [text for text in (trace.summary, trace.caption, trace.reasoning) if text]
    kept = "\n".join(stages) if stages or trace.conclusion is not None else analysis.strip()
    return SCRATCHPAD_PROMPT.format(analysis=kept, prompt=prompt) if kept else prompt
