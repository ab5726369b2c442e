"""Questions for vision-language models: the prompt is made here, and the options are plain keyword arguments."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack, overload

import torch

from cobra.models.backbones.vision import PixelValues
from cobra.models.generation.options import AnswerOptions, AskArguments, SearchOptions, takes
from cobra.models.mamba import MambaState
from cobra.models.vlms.generation_mixin import GenerationMixin, check_texts
from cobra.util.conversation import without_special_tokens
from cobra.util.errors import UserError
from cobra.util.pictures import ImageLike, is_picture

logger = logging.getLogger(__name__)


class AskingMixin(GenerationMixin):
    """Plain questions for a model that generates."""

    # A str is a sequence of texts, too; this one comes first.
    @overload
    def ask(  # type: ignore[overload-overlap]
        self, image: ImageLike | None, question: str, **options: Unpack[AskArguments]
    ) -> str: ...

    @overload
    def ask(
        self, image: Sequence[ImageLike], question: str | Sequence[str], **options: Unpack[AskArguments]
    ) -> list[str]: ...

    @overload
    def ask(self, image: ImageLike | None, question: Sequence[str], **options: Unpack[AskArguments]) -> list[str]: ...

    @takes(AnswerOptions)
    def ask(
        self,
        image: ImageLike | None | Sequence[ImageLike],
        question: str | Sequence[str],
        **options: Unpack[AskArguments],
    ) -> str | list[str]:
        """Answer a question about an image; the answer is the text alone, greedy unless it is sampled or searched for.

        Args:
            image: A PIL image, a path or address, the bytes of a file, an array of uint8 (height, width, 3), or None to
                ask without an image; a list of them for as many questions.
            question: Any text, or a list of texts. Lists are answered together; one question is asked about every image
                of a list, and about one image every question.
            max_new_tokens: Most tokens of an answer.
            do_sample: Sample in place of the best token at every step.
            temperature: Divisor of the scores before sampling; None is 1.0, in a search 0.6.
            top_k: Sample among the k best tokens; 0 is all.
            top_p: Sample among the smallest set of best tokens whose probability exceeds this; None is 1.0, in a search
                0.9.
            min_p: Sample among tokens at least this times as probable as the best; 0.0 is all.
            repetition_penalty: Above 1.0, tokens of prompt and answer come again less likely; not in a search.
            seed: Seed of what is drawn; each question after the first takes the next number. None is torch's.
            search: `best-of-n` takes the likeliest of several sampled answers, `vote` the CONCLUSION that most share,
                `stage-beam` the likeliest of several at every stage.
            beams: Answers, or branches of each stage, that a search chooses from.

        Raises:
            UserError: An image cannot be read, an option is unknown or out of its range, there are not as many
                questions as images, or a question is longer than the model's longest text.
        """
        chosen = AnswerOptions.from_kwargs(options)
        if chosen.ignored:
            logger.warning("without do_sample=True, %s changes nothing", ", ".join(chosen.ignored))
        # What is no picture, and no list either, is refused as a picture.
        images: Sequence[Any] | None = image if isinstance(image, Sequence) and not is_picture(image) else None
        count = 1 if images is None else len(images)
        questions = [question] * count if isinstance(question, str) else question
        check_texts(questions)
        if images is not None and len(images) != len(questions):
            raise UserError(
                f"the lists of images and questions have {len(images)} and {len(questions)} entries: expected as many, "
                "or a single image or question in place of a list"
            )
        if not questions:
            return []
        pixels, prefix = None, None
        if images is not None:
            pixels = self.preprocess(images)
        elif image is not None:
            pixels, prefix = self._read_once(image, len(questions))
        prompts = [as_turn(self, question) for question in questions]
        seeds = None if chosen.seed is None else [chosen.seed + number for number in range(len(prompts))]
        answers = self.answer_prompts(prompts, questions, chosen, pixels, prefix, seeds)
        return answers[0] if images is None and isinstance(question, str) else answers

    def _read_once(self, image: Any, count: int) -> tuple[PixelValues | None, MambaState | None]:
        """Return the pixels for one prompt, or the state after an image that several prompts share."""
        pixels = self.preprocess([image])
        if count == 1:
            return pixels, None
        return None, self.read_images(pixels).select(torch.zeros(count, dtype=torch.int64, device=self.device))

    def answer_prompts(
        self,
        prompts: Sequence[str],
        questions: Sequence[str],
        chosen: AnswerOptions,
        pixels: PixelValues | None,
        prefix: MambaState | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Answer prompts that are made already, of several turns say; see :meth:`ask`.

        Args:
            prompts: Texts in the model's prompt format.
            questions: Question that each prompt ends with; a vote takes the options from it that an answer may name.
            chosen: How answers are written; its seed is not looked at.
            pixels: Pixels with a row for each prompt, or None.
            prefix: State before each prompt in place of pixels.
            seeds: A seed for each prompt; None is torch's randomness.

        Raises:
            UserError: Options do not go together, or a prompt is longer than the model's longest text.
        """
        options = chosen.options()
        if isinstance(options, SearchOptions):
            results = self.search_batch(pixels, prompts, options, prefix=prefix, seeds=seeds, questions=questions)
            return [result.text for result in results]
        ids = [self.tokenize(prompt) for prompt in prompts]
        written = self.generate_batch_ids(pixels, ids, replace(options, seeds=seeds), prefix)
        return [self.decode(answer).strip() for answer in written]


def as_turn(vlm: GenerationMixin, text: str) -> str:
    """Return the text as the model's prompt format has a first human turn; without special tokens of the tokenizer."""
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", without_special_tokens(text))
    return builder.get_prompt()
