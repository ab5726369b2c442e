"""Requests of lmms-eval as questions: a prompt in the model's format, one image at most, and how it is answered."""

import logging
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cobra.evaluation.responses.protocol import MAX_NEW_TOKENS
from cobra.models.generation.options import AnswerOptions
from cobra.models.vlms.generation_mixin import GenerationMixin
from cobra.util.conversation import without_special_tokens
from cobra.util.errors import UserError

logger = logging.getLogger(__name__)

_ROLES = {"user": "human", "assistant": "gpt"}
# lmms-eval ends every answer there that a task says nothing about, and four-stage answers are parted by it.
_PARAGRAPHS = "\n\n"
# Generation arguments of tasks that change nothing of an answer by this model.
_IDLE = frozenset("use_cache max_length image_aspect_ratio num_return_sequences return_dict_in_generate".split())
_READ = frozenset("max_new_tokens max_gen_toks until do_sample temperature top_p top_k num_beams".split())
# Values of a task's options of sampling by which it asks for nothing, as tasks for other programs have them.
_OFF: Mapping[str, tuple[object, ...]] = {"temperature": (None, 0), "top_p": (None, 0), "top_k": (None, 0, -1)}


@dataclass(frozen=True)
class Question:
    """A question of a task about one image or none."""

    prompt: str
    """Text in the model's format, up to where the answer begins."""
    text: str
    """Question alone: the last turn."""
    visuals: Callable[[], list[Any]]
    """Opens its image: a list of one picture, or none."""
    has_image: bool
    options: AnswerOptions
    """How the answer is written."""
    stops: tuple[str, ...] = ()
    """Texts before which the answer that is returned ends."""
    seed: int = 0
    """Seed of what is drawn, the same in any batch and process."""


@dataclass(frozen=True)
class Settings:
    """How a model answers the tasks of lmms-eval."""

    given: AnswerOptions
    """Options of `--model_args`, with defaults in the place of those that it does not name."""
    named: Collection[str]
    """Names of the options in `--model_args`, which go before what a task asks for."""
    max_new_tokens: int | None
    """Most tokens of an answer in place of the tasks' limits; None lets :meth:`limit` choose."""
    reasons: bool
    """True for a model that was trained on four stages, all of which come before the end of its CONCLUSION."""

    def limit(self, wanted: int | None) -> int:
        """Return the most tokens of an answer to a task that wants at most so many; None is no wish."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if wanted is None:
            return MAX_NEW_TOKENS
        return max(wanted, MAX_NEW_TOKENS) if self.reasons else wanted

    def options(self, arguments: Mapping[str, Any], where: str) -> AnswerOptions:
        """Return how a request is answered, by a task's generation arguments where `--model_args` ask for nothing.

        `where` is the document and its task, for the error.

        Raises:
            UserError: The task asks for a number that is none, or out of its range.
        """
        try:
            options = self._chosen(arguments)
            options.options()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where} cannot be answered as the task asks ({error}): mend its generation_kwargs, or name that "
                "option in --model_args, which goes before them"
            ) from error
        return options

    def _chosen(self, arguments: Mapping[str, Any]) -> AnswerOptions:
        wanted = arguments.get("max_new_tokens", arguments.get("max_gen_toks"))
        options = replace(self.given, max_new_tokens=self.limit(None if wanted is None else int(wanted)))
        for name in sorted(arguments.keys() - _READ - _IDLE):
            _tell_ignored(name)
        if (arguments.get("num_beams") or 1) > 1:
            _tell_ignored("num_beams")
        if options.search != "none" or not self._samples(arguments):
            return options
        drawn = {name: arguments[name] for name in _OFF if name not in self.named and not _is_off(name, arguments)}
        return replace(options, do_sample=True, **drawn)

    def _samples(self, arguments: Mapping[str, Any]) -> bool:
        """Return True if the answer is drawn: a task's temperature of 0 takes the best token, whatever else it says."""
        if "do_sample" in self.named:
            return self.given.do_sample
        temperature = arguments.get("temperature")
        return bool(arguments.get("do_sample", temperature)) and temperature != 0


def _is_off(name: str, arguments: Mapping[str, Any]) -> bool:
    """Return True if a task asks for nothing by an option."""
    return arguments.get(name) in _OFF[name]


@cache
def _tell_ignored(name: str) -> None:
    logger.warning("a task asks for the generation argument %s, which this model does not have: it is left out", name)


def seed_of(base: int | None, document: Any, repeat: int) -> int:
    """Return the seed of a document's answer; of the first without a `base` that of `benchmark.py --task llava-cot`."""
    parts = [str(document)] + [f"repeat {repeat}"] * (repeat > 0) + [f"seed {base}"] * (base is not None)
    return zlib.crc32("/".join(parts).encode())


def stops_of(until: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of a task's `until` that end an answer here: all but the pause between paragraphs."""
    texts = [until] if isinstance(until, str) else until or []
    return tuple(text for text in texts if text and text != _PARAGRAPHS)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of some others in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))].strip()


def one_image(visuals: Any, where: str) -> list[Any]:
    """Return the images of a request as a list of one, or an empty one.

    Raises:
        UserError: There are several: the model reads one.
    """
    images = [image for image in (visuals if isinstance(visuals, list | tuple) else [visuals]) if image is not None]
    if len(images) > 1:
        raise UserError(
            f"{where} has {len(images)} images, and the model reads one image before the text: leave that task out of "
            "--tasks, or keep to its documents with one image (--limit, --offset, or a task file of its own)"
        )
    return images


def from_chat(vlm: GenerationMixin, messages: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str, list[Any]]:
    """Return prompt, last question and images of messages; a system message is put before the first turn.

    Raises:
        UserError: They hold video or sound, or turns that do not alternate, beginning and ending with the user.
    """
    builder, before, text, images = vlm.get_prompt_builder(), [], "", []
    for message in messages:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        if other := sorted({part["type"] for part in parts} - {"text", "image"}):
            raise UserError(
                f"{where} has {' and '.join(other)}, and the model reads images and text only: leave it out"
            )
        images += [part["url"] for part in parts if part["type"] == "image"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        if message["role"] == "system":
            before.append(text)
            continue
        whole = _PARAGRAPHS.join([*before, text])
        before = []
        builder.add_turn(_ROLES.get(message["role"], message["role"]), without_special_tokens(whole))
    if builder.turn_count % 2 == 0:
        raise UserError(f"{where} ends with a turn of the assistant, and the model answers a user's")
    return builder.get_prompt(), text, images
